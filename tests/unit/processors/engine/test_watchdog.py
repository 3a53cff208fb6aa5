"""Watchdog: distinguishes stuck workers from waiting ones, and counts its terminations across processes."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from nigredo.settings import Settings
from processors.engine.watchdog import Observation, Restarts, stuck_for_s

GAP_MAX_S = 10.0


def observed(*progress: object, every_s: float = 5.0, could_work: bool = True) -> list[Observation]:
    return [Observation(number * every_s, could_work, each) for number, each in enumerate(progress)]


def stuck(observations: list[Observation], now: float | None = None) -> float:
    return stuck_for_s(observations, observations[-1].at if now is None else now, gap_max_s=GAP_MAX_S)


def test_no_progress_while_there_is_work_is_counted_from_the_last_progress() -> None:
    assert stuck(observed("a", "b", "b", "b")) == 10


def test_every_kind_of_progress_restarts_the_count() -> None:
    assert stuck(observed("a", "a", "a", "b")) == 0


def test_nothing_to_do_is_not_stuck() -> None:
    assert stuck(observed("a", "a", "a", could_work=False)) == 0


def test_a_dependency_outage_restarts_the_count() -> None:
    outage = Observation(10, could_work=False)
    assert (
        stuck(
            [
                Observation(0, True, "a"),
                Observation(5, True, "a"),
                outage,
                Observation(15, True, "a"),
                Observation(20, True, "a"),
            ]
        )
        == 5
    )


def test_a_process_that_stood_still_as_a_whole_is_not_stuck() -> None:
    frozen = [Observation(0, True, "a"), Observation(5, True, "a"), Observation(600, True, "a")]
    assert stuck(frozen) == 5 + GAP_MAX_S


def test_without_an_observation_no_worker_is_stuck() -> None:
    assert stuck_for_s([], 1000.0, gap_max_s=GAP_MAX_S) == 0


some_observations = st.lists(
    st.builds(Observation, st.floats(0, 1e6), st.booleans(), st.integers(0, 2)), min_size=1, max_size=40
).map(lambda found: sorted(found, key=lambda each: each.at))


@given(some_observations, st.floats(0, 1e6))
def test_the_stuck_time_never_exceeds_the_time_since_the_last_progress(
    observations: list[Observation], later: float
) -> None:
    now = observations[-1].at + later
    others = [
        n for n, each in enumerate(observations) if not each.could_work or each.progress != observations[-1].progress
    ]
    first = observations[others[-1] + 1] if others and others[-1] + 1 < len(observations) else observations[0]
    counted = stuck(observations, now)
    assert 0 <= counted <= now - first.at + 1e-6
    assert counted <= GAP_MAX_S * len(observations)
    if not observations[-1].could_work:
        assert counted == 0


@given(some_observations, st.integers(3, 9))
def test_progress_at_the_last_observation_leaves_only_the_time_since(
    observations: list[Observation], fresh: int
) -> None:
    now = observations[-1].at
    assert stuck([*observations, Observation(now, True, fresh)], now) == 0


def test_the_count_of_restarts_outlives_the_process(tmp_path: Path) -> None:
    settings = Settings.from_environment({"NIGREDO_STATE_DIR": str(tmp_path / "not there yet")})
    assert Restarts(settings, "persister").count() == 0

    Restarts(settings, "persister").add()
    Restarts(settings, "persister").add()

    assert Restarts(settings, "persister").count() == 2
    assert Restarts(settings, "rate-limiter").count() == 0
