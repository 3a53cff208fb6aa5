"""Edge limiter: the limiter's windows and the local acceptances add up to the limiter's verdict."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.submissions.edge_limiter import STORED_IN_FULL, EdgeLimiter
from nigredo.avro.codec import Codec
from nigredo.kafka.materialized_view import Row
from nigredo.rate_limit.window import ACCEPTED, RATE_LIMITED, REPEATED, judge
from schemas.events import Acceptance, Contact, RateLimitState, Submission
from schemas.topics import RATE_LIMITS, load_schema

LIMIT, WINDOW_S = 3, 3600


class OneSchema:
    """A registry that knows one schema."""

    def id_of(self, *_: object) -> int:
        return 1

    def schema_of(self, _: int) -> Any:
        return load_schema("rate-limits")


def codec() -> Codec:
    codec = Codec(OneSchema())
    codec.prepare([RATE_LIMITS])
    return codec


CODEC = codec()


def now() -> datetime:
    # States carry milliseconds, and are evicted by the wall clock.
    at = datetime.now(UTC)
    return at.replace(microsecond=at.microsecond // 1000 * 1000)


def edge(networks_max: int = 1000) -> EdgeLimiter:
    return EdgeLimiter(CODEC, window_s=WINDOW_S, networks_max=networks_max)


def submission(network: str = "192.0.2.1", **changes: Any) -> Submission:
    contact = Contact("Ana", "ana@example.com", "Oi", {})
    whole = Submission(
        uuid4(), network, network, None, None, None, contact, now(), LIMIT, WINDOW_S, exempt=False, edge_verdict=None
    )
    return replace(whole, **changes)


def row(state: RateLimitState) -> Row:
    return Row(state.client_network.encode(), CODEC.encode(RATE_LIMITS, state), 0, state.input_offset, 0)


def state(accepted: int, *, offset: int, network: str = "192.0.2.1") -> RateLimitState:
    at = now()
    times = tuple(Acceptance(uuid4(), at - timedelta(seconds=n)) for n in reversed(range(accepted)))
    return RateLimitState(network, LIMIT, WINDOW_S, times, 0, at, offset)


def take(node: EdgeLimiter, one: Submission, offset: int) -> None:
    node.accepted(one, one.taken_at)
    node.confirm(one.client_network.encode(), one.id, offset)


def test_what_this_node_took_counts_at_once() -> None:
    node = edge()
    for offset in range(LIMIT):
        one = submission()
        assert node.judge(one, one.taken_at).outcome == ACCEPTED
        take(node, one, offset)

    verdict = node.judge(submission(), now())

    assert verdict.outcome == RATE_LIMITED
    assert verdict.retry_at is not None
    assert verdict.retry_at > now() + timedelta(seconds=WINDOW_S - 60)


def test_what_the_limiter_judged_is_not_counted_twice() -> None:
    node, one = edge(), submission()
    take(node, one, 7)
    judged = judge(None, one, at=one.taken_at, offset=7).state

    node.apply([row(judged)])

    assert len(node.judge(submission(), now()).state.accepted) == 2


def test_what_the_limiter_judged_before_its_offset_is_told_here_is_not_counted_twice() -> None:
    """Drained submissions are in this state for as long as later ones of the spool are in flight."""
    node, one = edge(), submission()
    node.accepted(one, one.taken_at)
    node.confirm(one.client_network.encode(), one.id, None)
    node.apply([row(judge(None, one, at=one.taken_at, offset=7).state)])

    assert [kept.id for kept in node.judge(submission(), now()).state.accepted][:-1] == [one.id]

    node.apply([row(replace(state(0, offset=8), exempt=(Acceptance(one.id, one.taken_at),)))])

    assert len(node.judge(submission(), now()).state.accepted) == 1


def test_an_id_that_the_limiter_refused_and_that_is_sent_again_counts_once() -> None:
    node, one = edge(), submission()
    take(node, one, 5)
    node.apply([row(state(0, offset=5))])
    again = replace(one, taken_at=one.taken_at + timedelta(seconds=1))
    assert node.judge(again, again.taken_at).outcome == ACCEPTED

    node.accepted(again, again.taken_at)
    assert not node.has(again), "the one that was kept was refused, and the new one is on its way"
    node.confirm(again.client_network.encode(), again.id, 20)

    assert node.has(again)
    assert len(node.judge(submission(), again.taken_at).state.accepted) == 2


def test_what_is_on_its_way_counts_on_top_of_what_the_limiter_judged() -> None:
    node, one = edge(), submission()
    node.apply([row(state(LIMIT - 1, offset=7))])
    take(node, one, 8)

    assert node.judge(submission(), now()).outcome == RATE_LIMITED


def test_what_kafka_did_not_take_counts_no_more() -> None:
    node = edge()
    for _ in range(LIMIT):
        one = submission()
        node.accepted(one, one.taken_at)
        node.release(one)

    assert node.judge(submission(), now()).outcome == ACCEPTED
    assert node.networks == 0


def test_a_network_that_was_freed_is_free_here() -> None:
    node = edge()
    for offset in range(LIMIT):
        one = submission()
        take(node, one, offset)
    node.apply([row(state(0, offset=LIMIT))])

    assert node.judge(submission(), now()).outcome == ACCEPTED


def test_what_the_limiter_accepted_outside_the_limit_is_a_repeat_here_and_takes_nothing_from_the_limit() -> None:
    node, exempt = edge(), submission(exempt=True)
    judged = judge(state(LIMIT - 1, offset=7), exempt, at=exempt.taken_at, offset=8).state
    node.apply([row(judged)])

    assert node.judge(exempt, now()).outcome == REPEATED
    last = submission()
    assert node.judge(last, last.taken_at).outcome == ACCEPTED
    take(node, last, 9)
    assert node.judge(submission(), now()).outcome == RATE_LIMITED
    assert node.judge(exempt, now()).outcome == REPEATED


def test_another_node_learns_from_the_topic_and_a_tombstone_frees() -> None:
    node, full = edge(), state(LIMIT, offset=7)
    node.apply([row(full)])
    assert node.judge(submission(), now()).outcome == RATE_LIMITED

    node.apply([Row(full.client_network.encode(), None, 0, 8, 0)])
    assert node.judge(submission(), now()).outcome == ACCEPTED


def test_loading_again_forgets_nothing_until_it_is_done() -> None:
    node, full = edge(), state(LIMIT, offset=7)
    node.begin()
    node.apply([row(full)])
    node.loaded()

    node.begin()
    assert node.judge(submission(), now()).outcome == RATE_LIMITED
    node.loaded()
    assert node.judge(submission(), now()).outcome == ACCEPTED


def test_memory_is_bounded_and_what_is_over_is_let_go() -> None:
    node, long_ago = edge(networks_max=100), now() - timedelta(seconds=WINDOW_S + 120)
    states = [state(1, offset=n, network=f"10.0.{n // 256}.{n % 256}") for n in range(50)]
    node.apply([row(replace(one, accepted=(), updated_at=long_ago)) for one in states])
    assert node.networks == 0

    node.apply([row(state(1, offset=n, network=f"10.0.{n // 256}.{n % 256}")) for n in range(500)])
    assert node.networks == 100
    for n in range(500):
        one = submission(f"10.1.{n // 256}.{n % 256}")
        node.accepted(one, one.taken_at)
    assert node.networks == 200


def test_past_a_bound_refusals_are_only_counted_and_each_number_is_told_once() -> None:
    node = edge()
    kept = [node.record_refusal(submission(), now()) for _ in range(STORED_IN_FULL * LIMIT + 4)]

    assert kept == [True] * STORED_IN_FULL * LIMIT + [False] * 4
    assert [(told.client_network, told.count) for told in node.drain_refusal_counts(now())] == [("192.0.2.1", 4)]
    assert node.drain_refusal_counts(now()) == []


def test_what_programs_send_uses_up_nothing_of_what_is_kept_of_people() -> None:
    node = edge()
    honeypot, hasty = (replace(submission(), edge_verdict="spam", spam_sign=sign) for sign in ("honeypot", "too_fast"))
    for _ in range(STORED_IN_FULL * LIMIT + 1):
        node.record_refusal(honeypot, now())

    assert not node.record_refusal(honeypot, now())
    assert node.record_refusal(hasty, now())
    assert node.record_refusal(submission(), now())
    assert [(told.client_network, told.count) for told in node.drain_refusal_counts(now())] == [("192.0.2.1", 2)]


@settings(deadline=None)
@given(st.lists(st.sampled_from(["post", "judged", "other node"]), max_size=30))
def test_whatever_the_order_no_more_than_the_limit_is_taken_and_all_that_is_allowed(steps: list[str]) -> None:
    """Against the limiter itself: its input is what the nodes published, and its windows arrive at once or later."""
    node, log = edge(), list[Submission]()
    judged: RateLimitState | None = None
    taken = 0
    for step in steps:
        one = submission()
        if step == "judged":
            for offset in range(0 if judged is None else judged.input_offset + 1, len(log)):
                judged = judge(judged, log[offset], at=log[offset].taken_at, offset=offset).state
            if judged is not None:
                node.apply([row(judged)])
        elif step == "other node":
            log.append(one)
        elif node.judge(one, one.taken_at).outcome == ACCEPTED:
            take(node, one, len(log))
            log.append(one)
            taken += 1
    final: RateLimitState | None = None
    for offset, one in enumerate(log):
        final = judge(final, one, at=one.taken_at, offset=offset).state

    assert taken <= LIMIT
    # No submission was refused while its network had quota left.
    if steps.count("other node") == 0:
        assert taken == min(LIMIT, steps.count("post"))


def test_what_is_sent_again_is_known_once_it_was_kept_and_not_before() -> None:
    node, one = edge(), submission()
    node.accepted(one, one.taken_at)
    assert node.judge(one, one.taken_at).outcome == REPEATED
    assert not node.has(one)

    node.confirm(one.client_network.encode(), one.id, None)
    assert node.has(one)
    assert not node.has(submission())


def test_what_another_node_took_is_known_once_it_was_judged() -> None:
    node, one = edge(), submission()
    assert not node.has(one)

    node.apply([row(judge(None, one, at=one.taken_at, offset=7).state)])
    assert node.has(one)
