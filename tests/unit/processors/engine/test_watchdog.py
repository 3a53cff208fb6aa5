"""Who is stuck and who only waits: the watchdog's decision, and its count that outlives the process."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from nigredo.settings import Settings
from processors.engine.watchdog import Observation, Restarts, stuck_for_s

GAP_MAX_S = 10.0


def looks(*progress: object, every_s: float = 5.0, could_work: bool = True) -> list[Observation]:
    return [Observation(number * every_s, could_work, one) for number, one in enumerate(progress)]


def stuck(seen: list[Observation], now: float | None = None) -> float:
    return stuck_for_s(seen, seen[-1].at if now is None else now, gap_max_s=GAP_MAX_S)


def test_no_progress_while_there_is_work_is_counted_from_the_last_progress() -> None:
    assert stuck(looks("a", "b", "b", "b")) == 10


def test_every_kind_of_progress_begins_the_count_anew() -> None:
    assert stuck(looks("a", "a", "a", "b")) == 0


def test_nothing_to_do_is_not_stuck() -> None:
    assert stuck(looks("a", "a", "a", could_work=False)) == 0


def test_a_dependency_that_was_away_begins_the_count_anew() -> None:
    away = Observation(10, could_work=False)
    assert (
        stuck(
            [
                Observation(0, True, "a"),
                Observation(5, True, "a"),
                away,
                Observation(15, True, "a"),
                Observation(20, True, "a"),
            ]
        )
        == 5
    )


def test_a_process_that_stood_still_as_a_whole_is_not_stuck() -> None:
    frozen = [Observation(0, True, "a"), Observation(5, True, "a"), Observation(600, True, "a")]
    assert stuck(frozen) == 5 + GAP_MAX_S


def test_without_a_look_nobody_is_stuck() -> None:
    assert stuck_for_s([], 1000.0, gap_max_s=GAP_MAX_S) == 0


some_looks = st.lists(
    st.builds(Observation, st.floats(0, 1e6), st.booleans(), st.integers(0, 2)), min_size=1, max_size=40
).map(lambda found: sorted(found, key=lambda look: look.at))


@given(some_looks, st.floats(0, 1e6))
def test_what_is_counted_is_never_more_than_what_passed_since_the_last_progress(
    seen: list[Observation], later: float
) -> None:
    now = seen[-1].at + later
    others = [n for n, look in enumerate(seen) if not look.could_work or look.progress != seen[-1].progress]
    first = seen[others[-1] + 1] if others and others[-1] + 1 < len(seen) else seen[0]
    counted = stuck(seen, now)
    assert 0 <= counted <= now - first.at + 1e-6
    assert counted <= GAP_MAX_S * len(seen)
    if not seen[-1].could_work:
        assert counted == 0


@given(some_looks, st.integers(3, 9))
def test_progress_at_the_last_look_leaves_no_more_than_the_time_since(seen: list[Observation], fresh: int) -> None:
    now = seen[-1].at
    assert stuck([*seen, Observation(now, True, fresh)], now) == 0


def test_the_count_of_restarts_outlives_the_process(tmp_path: Path) -> None:
    settings = Settings.from_environment({"NIGREDO_STATE_DIR": str(tmp_path / "not there yet")})
    assert Restarts(settings, "persister").count() == 0

    Restarts(settings, "persister").add()
    Restarts(settings, "persister").add()

    assert Restarts(settings, "persister").count() == 2
    assert Restarts(settings, "rate-limiter").count() == 0
