"""The limit's decision, held against its own definition."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

from hypothesis import given
from hypothesis import strategies as st

from nigredo.window import (
    ACCEPTED,
    DUPLICATE,
    EXEMPT_KEPT,
    RATE_LIMITED,
    REPEATED,
    Verdict,
    count_refusals,
    forgettable,
    judge,
    pass_release,
    reset,
)
from schemas.events import Contact, LimitReset, RateLimitState, RefusalCount, RejectionRelease, Submission

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
NETWORK = "192.0.2.1"
CONTACT = Contact("Ana", "ana@example.com", "Oi", {})


def submission(
    *, limit: int = 10, lead_id: UUID | None = None, exempt: bool = False, edge: str | None = None
) -> Submission:
    return Submission(
        id=lead_id or uuid4(),
        client_network=NETWORK,
        ip_address=NETWORK,
        user_agent=None,
        form_id=None,
        source=None,
        contact=CONTACT,
        taken_at=NOON,
        limit=limit,
        window_s=3600,
        exempt=exempt,
        edge_verdict=edge,
    )


def judge_all(log: list[tuple[Submission, datetime]]) -> list[Verdict]:
    state: RateLimitState | None = None
    verdicts = []
    for offset, (event, at) in enumerate(log):
        verdicts.append(judge(state, event, at=at, offset=offset))
        state = verdicts[-1].state
    return verdicts


def accepted_times(log: list[tuple[Submission, datetime]], verdicts: list[Verdict]) -> list[datetime]:
    return [at for (_, at), verdict in zip(log, verdicts, strict=True) if verdict.outcome == ACCEPTED]


# Gaps of seconds to half an hour, so that windows fill, slide and empty within a few dozen records.
gaps = st.lists(st.integers(0, 1800), min_size=1, max_size=80)
limits = st.integers(1, 6)


def log_of(gaps_s: list[int], limit: int) -> list[tuple[Submission, datetime]]:
    at, log = NOON, []
    for gap_s in gaps_s:
        at += timedelta(seconds=gap_s)
        log.append((submission(limit=limit), at))
    return log


@given(gaps, limits)
def test_no_hour_holds_more_acceptances_than_the_limit(gaps_s: list[int], limit: int) -> None:
    log = log_of(gaps_s, limit)

    accepted = accepted_times(log, judge_all(log))

    for start in accepted:
        assert sum(start <= at < start + HOUR for at in accepted) <= limit


@given(gaps, limits)
def test_a_submission_is_refused_only_when_the_limit_is_reached(gaps_s: list[int], limit: int) -> None:
    log = log_of(gaps_s, limit)
    accepted: list[datetime] = []

    for (_, at), verdict in zip(log, judge_all(log), strict=True):
        full = sum(at - earlier < HOUR for earlier in accepted) >= limit
        assert verdict.outcome == (RATE_LIMITED if full else ACCEPTED)
        if not full:
            accepted.append(at)


@given(gaps, limits)
def test_waiting_exactly_as_told_is_enough_and_less_is_not(gaps_s: list[int], limit: int) -> None:
    log = log_of(gaps_s, limit)
    for offset, verdict in enumerate(judge_all(log)):
        if verdict.outcome == RATE_LIMITED:
            assert verdict.retry_at is not None
            after, before = verdict.retry_at, verdict.retry_at - timedelta(milliseconds=1)
            assert judge(verdict.state, submission(limit=limit), at=after, offset=offset + 1).outcome == ACCEPTED
            if before >= verdict.state.updated_at:
                early = judge(verdict.state, submission(limit=limit), at=before, offset=offset + 1)
                assert early.outcome == RATE_LIMITED


@given(gaps, limits, st.data())
def test_the_same_log_gives_the_same_verdicts_from_wherever_it_is_read_again(
    gaps_s: list[int], limit: int, data: st.DataObject
) -> None:
    log = log_of(gaps_s, limit)
    first = judge_all(log)
    crash_at = data.draw(st.integers(0, len(log) - 1))

    state = first[crash_at - 1].state if crash_at else None
    again = []
    for offset in range(crash_at, len(log)):
        again.append(judge(state, log[offset][0], at=log[offset][1], offset=offset))
        state = again[-1].state

    assert again == first[crash_at:]


@given(gaps)
def test_the_state_never_holds_more_than_the_limit_nor_anything_outside_the_window(gaps_s: list[int]) -> None:
    for verdict in judge_all(log_of(gaps_s, 3)):
        assert len(verdict.state.accepted) <= 3
        assert all(verdict.state.updated_at - kept.at < HOUR for kept in verdict.state.accepted)


RESET = LimitReset(NETWORK, "test", NOON)
RELEASE = RejectionRelease(uuid4(), NETWORK, "test", NOON, 0, 0)
REFUSALS = RefusalCount(NETWORK, 3, NOON, NOON)
Anything = Submission | LimitReset | RejectionRelease | RefusalCount


def step(
    state: RateLimitState | None, event: Anything, at: datetime, offset: int
) -> tuple[str | None, RateLimitState | None]:
    match event:
        case Submission():
            verdict = judge(state, event, at=at, offset=offset)
            return verdict.outcome, verdict.state
        case LimitReset():
            return None, reset(state, event, at=at, offset=offset)
        case RejectionRelease():
            return None, pass_release(state, event, at=at, offset=offset)
        case RefusalCount():
            return None, count_refusals(state, event, at=at, offset=offset)


@st.composite
def logs(draw: st.DrawFn) -> list[tuple[Anything, datetime]]:
    """Draw submissions with limits that change, refusals told in number, resets and releases between them."""
    at, log = NOON, list[tuple[Anything, datetime]]()
    kinds = st.sampled_from(["submission"] * 6 + ["reset", "release", "refusals"])
    for _ in range(draw(st.integers(1, 60))):
        at += timedelta(seconds=draw(st.integers(0, 1800)))
        commands = {"reset": RESET, "release": RELEASE, "refusals": REFUSALS}
        log.append((commands.get(draw(kinds)) or submission(limit=draw(limits)), at))
    return log


def outcomes(log: list[tuple[Anything, datetime]]) -> list[tuple[str | None, RateLimitState | None]]:
    found, state = [], None
    for offset, (event, at) in enumerate(log):
        outcome, state = step(state, event, at, offset)
        found.append((outcome, state))
    return found


@given(logs())
def test_with_resets_and_releases_a_submission_is_refused_exactly_when_the_definition_says_so(
    log: list[tuple[Anything, datetime]],
) -> None:
    counted: list[datetime] = []
    for (event, at), (outcome, state) in zip(log, outcomes(log), strict=True):
        counted = [earlier for earlier in counted if at - earlier < HOUR]
        if isinstance(event, LimitReset):
            counted = []
        if isinstance(event, Submission):
            assert outcome == (ACCEPTED if len(counted) < event.limit else RATE_LIMITED)
            counted += [at] if outcome == ACCEPTED else []
        if state is not None:
            assert [kept.at for kept in state.accepted] == counted


@given(logs())
def test_a_release_changes_no_verdict_and_never_the_count_of_what_is_accepted(
    log: list[tuple[Anything, datetime]],
) -> None:
    without = [entry for entry in log if not isinstance(entry[0], RejectionRelease)]

    assert [outcome for outcome, _ in outcomes(log) if outcome] == [o for o, _ in outcomes(without) if o]


@given(logs(), st.data())
def test_a_log_with_resets_and_releases_read_again_from_anywhere_gives_the_same_verdicts(
    log: list[tuple[Anything, datetime]], data: st.DataObject
) -> None:
    """As the limiter reads it: what lies at or below the state's offset is passed over, whatever it is."""
    first = outcomes(log)
    durable, committed = data.draw(st.integers(0, len(log) - 1)), data.draw(st.integers(0, len(log) - 1))
    state = first[durable][1]

    for offset in range(min(committed, durable + 1), len(log)):
        if state is not None and offset <= state.input_offset:
            continue
        outcome, state = step(state, *log[offset], offset)
        assert (outcome, state) == first[offset]


@given(logs())
def test_a_known_window_moves_its_offset_on_with_every_record(log: list[tuple[Anything, datetime]]) -> None:
    for offset, (_, state) in enumerate(outcomes(log)):
        assert state is None or state.input_offset == offset


@st.composite
def logs_with_repeats(draw: st.DrawFn) -> list[tuple[Anything, datetime]]:
    """Draw submissions of which some are exempt, under so few ids that many come again, and resets between them."""
    at, log = NOON, list[tuple[Anything, datetime]]()
    for _ in range(draw(st.integers(1, 60))):
        at += timedelta(seconds=draw(st.integers(0, 1800)))
        lead_id = UUID(int=draw(st.integers(0, 7)))
        one = submission(limit=draw(limits), lead_id=lead_id, exempt=draw(st.booleans()))
        log.append((RESET if draw(st.integers(0, 5)) == 0 else one, at))
    return log


@given(logs_with_repeats())
def test_an_id_is_accepted_once_within_the_window_whether_it_was_exempt_or_its_network_freed(
    log: list[tuple[Anything, datetime]],
) -> None:
    accepted: dict[UUID, datetime] = {}

    for (event, at), (outcome, _) in zip(log, outcomes(log), strict=True):
        if isinstance(event, Submission):
            known = event.id in accepted and at - accepted[event.id] < HOUR
            assert (outcome == REPEATED) == known
            if outcome == ACCEPTED:
                accepted[event.id] = at


@given(logs(), st.data())
def test_exempt_submissions_between_others_change_no_verdict_of_theirs_and_no_count(
    log: list[tuple[Anything, datetime]], data: st.DataObject
) -> None:
    followed = data.draw(st.lists(st.booleans(), min_size=len(log), max_size=len(log)))
    mixed = list[tuple[Anything, datetime]]()
    for entry, by_an_exempt_one in zip(log, followed, strict=True):
        mixed += [entry, (submission(exempt=True), entry[1])] if by_an_exempt_one else [entry]

    among = [found for (event, _), found in zip(mixed, outcomes(mixed), strict=True) if not _is_exempt(event)]

    assert [_decided(*found) for found in among] == [_decided(*found) for found in outcomes(log)]


def _is_exempt(event: Anything) -> bool:
    return isinstance(event, Submission) and event.exempt


def _decided(outcome: str | None, state: RateLimitState | None) -> object:
    return outcome, [] if state is None else [kept.at for kept in state.accepted]


@given(st.lists(st.integers(0, 90), min_size=EXEMPT_KEPT, max_size=2 * EXEMPT_KEPT))
def test_of_exempt_submissions_the_newest_are_known_and_no_more_nor_any_outside_the_window(gaps_s: list[int]) -> None:
    at, log = NOON, list[tuple[Submission, datetime]]()
    for gap_s in gaps_s:
        at += timedelta(seconds=gap_s)
        log.append((submission(exempt=True), at))

    for number, verdict in enumerate(judge_all(log)):
        so_far = [(event.id, then) for event, then in log[: number + 1] if log[number][1] - then < HOUR]
        assert [(kept.id, kept.at) for kept in verdict.state.exempt] == so_far[-EXEMPT_KEPT:]


def test_an_id_that_still_counts_is_neither_accepted_nor_refused_again() -> None:
    event = submission(limit=1)

    first = judge(None, event, at=NOON, offset=0)
    again = judge(first.state, event, at=NOON + timedelta(minutes=5), offset=1)

    assert (first.outcome, again.outcome) == (ACCEPTED, REPEATED)
    assert again.state.accepted == first.state.accepted
    assert again.state.refused == 0
    assert again.state.input_offset == 1


def test_a_clock_that_goes_back_never_opens_the_window() -> None:
    first = judge(None, submission(limit=1), at=NOON, offset=0)

    earlier = judge(first.state, submission(limit=1), at=NOON - timedelta(hours=5), offset=1)

    assert earlier.outcome == RATE_LIMITED
    assert earlier.state.updated_at == NOON


def test_a_limit_lowered_between_records_holds_at_once_and_a_raised_one_too() -> None:
    log = [(submission(limit=5), NOON + timedelta(minutes=n)) for n in range(4)]
    state = judge_all(log)[-1].state

    lowered = judge(state, submission(limit=2), at=NOON + timedelta(minutes=5), offset=4)
    raised = judge(lowered.state, submission(limit=5), at=NOON + timedelta(minutes=6), offset=5)

    assert lowered.outcome == RATE_LIMITED
    # The third of the four counted ones must leave before fewer than two are left.
    assert lowered.retry_at == NOON + timedelta(minutes=2) + HOUR
    assert raised.outcome == ACCEPTED


def test_an_exempt_submission_is_accepted_and_not_counted() -> None:
    full = judge(None, submission(limit=1), at=NOON, offset=0)

    exempt = judge(full.state, submission(limit=1, exempt=True), at=NOON, offset=1)

    assert exempt.outcome == ACCEPTED
    assert exempt.state.accepted == full.state.accepted


def test_an_exempt_submission_that_comes_again_is_known_until_its_window_is_over() -> None:
    event = submission(exempt=True)
    late, over = NOON + HOUR - timedelta(milliseconds=1), NOON + HOUR

    verdicts = judge_all([(event, NOON), (event, late), (submission(), late), (event, late), (event, over)])

    assert [verdict.outcome for verdict in verdicts] == [ACCEPTED, REPEATED, ACCEPTED, REPEATED, ACCEPTED]


def test_what_was_exempt_stays_known_when_it_is_so_no_more_and_when_its_network_is_freed() -> None:
    event = submission(limit=1, exempt=True)
    full = judge(judge(None, event, at=NOON, offset=0).state, submission(limit=1), at=NOON, offset=1)

    no_more = judge(full.state, submission(limit=1, lead_id=event.id), at=NOON, offset=2)
    freed = reset(full.state, LimitReset(NETWORK, "test", NOON), at=NOON, offset=2)

    assert no_more.outcome == REPEATED
    assert judge(freed, event, at=NOON, offset=3).outcome == REPEATED
    assert judge(freed, submission(limit=1), at=NOON, offset=3).outcome == ACCEPTED


def test_a_refusal_at_the_edge_is_counted_and_never_accepted() -> None:
    verdict = judge(None, submission(edge=RATE_LIMITED), at=NOON, offset=0)

    assert verdict.outcome == RATE_LIMITED
    assert (verdict.state.accepted, verdict.state.refused) == ((), 1)


def test_a_double_click_is_refused_but_not_held_against_the_person() -> None:
    verdict = judge(None, submission(edge=DUPLICATE), at=NOON, offset=0)

    assert verdict.outcome == DUPLICATE
    assert verdict.state.refused == 0


def test_a_reset_frees_the_network() -> None:
    full = judge(None, submission(limit=1), at=NOON, offset=0)

    freed = reset(full.state, LimitReset(NETWORK, "test", NOON), at=NOON + timedelta(seconds=1), offset=1)
    after = judge(freed, submission(limit=1), at=NOON + timedelta(seconds=2), offset=2)

    assert after.outcome == ACCEPTED
    assert reset(None, LimitReset(NETWORK, "test", NOON), at=NOON, offset=0) is None


def test_of_what_counted_before_a_network_was_freed_the_newest_stay_known_and_no_more() -> None:
    full = judge_all([(submission(limit=200), NOON + timedelta(seconds=n)) for n in range(2 * EXEMPT_KEPT)])[-1].state

    freed = reset(full, RESET, at=full.updated_at, offset=full.input_offset + 1)

    assert freed is not None
    assert (freed.accepted, freed.exempt) == ((), full.accepted[-EXEMPT_KEPT:])


def test_refusals_that_come_as_a_number_are_counted() -> None:
    state = judge(None, submission(), at=NOON, offset=0).state
    command = RefusalCount(NETWORK, 100, NOON, NOON)

    counted = count_refusals(state, command, at=NOON + timedelta(minutes=1), offset=1)

    assert counted is not None
    assert counted.refused == 100
    assert counted.accepted == state.accepted
    assert count_refusals(None, command, at=NOON, offset=0) is None


def test_a_state_is_forgettable_once_its_window_is_over() -> None:
    state = judge(None, submission(), at=NOON, offset=0).state

    assert not forgettable(state, NOON + HOUR - timedelta(milliseconds=1))
    assert forgettable(state, NOON + HOUR)
    exempt = judge(None, submission(exempt=True), at=NOON, offset=0).state
    assert not forgettable(exempt, NOON + HOUR - timedelta(milliseconds=1))
    assert forgettable(exempt, NOON + HOUR)
    assert judge(state, submission(limit=1), at=NOON + HOUR, offset=1).outcome == ACCEPTED


def test_a_refused_submission_that_comes_again_is_judged_by_its_own_time_and_is_one_lead_at_most() -> None:
    """A record that was sent twice, as after a crash of who sent it: the limit holds, whichever of the two is taken."""
    first, second = submission(limit=1), submission(limit=1)
    log = [(first, NOON), (second, NOON), (second, NOON + HOUR / 2), (second, NOON + HOUR), (second, NOON + HOUR)]

    verdicts = judge_all(log)

    outcomes = [verdict.outcome for verdict in verdicts]
    assert outcomes == [ACCEPTED, RATE_LIMITED, RATE_LIMITED, ACCEPTED, REPEATED]
    assert [acceptance.id for acceptance in verdicts[-1].state.accepted] == [second.id]


def test_an_accepted_submission_that_comes_again_after_its_window_is_accepted_under_the_same_id() -> None:
    """The limit knows nothing of it any more; the id is what makes one row and one `webhook-id` of the two records."""
    event = submission()

    verdicts = judge_all([(event, NOON), (event, NOON + HOUR - timedelta(seconds=1)), (event, NOON + HOUR)])

    assert [verdict.outcome for verdict in verdicts] == [ACCEPTED, REPEATED, ACCEPTED]
    assert [acceptance.id for acceptance in verdicts[-1].state.accepted] == [event.id]
