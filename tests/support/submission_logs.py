"""Logs of submissions and commands for property tests, and the verdicts of the window over a whole log."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

from hypothesis import strategies as st

from nigredo.rate_limit.window import (
    ACCEPTED,
    Verdict,
    count_refusals,
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
    """Draw submissions with changing limits, and refusal counts, resets and releases between them."""
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
