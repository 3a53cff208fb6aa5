"""Packed acceptances: the same answers as from plain lists, in any order of operations."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from ingest.submissions.local_acceptances import LocalAcceptances

WINDOW = timedelta(seconds=10)
NETWORKS = [b"192.0.2.1", b"192.0.2.2", b"2001:db8::/64"]
START = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass
class One:
    """An accepted submission as a plain object."""

    id: UUID
    at: datetime
    offset: int | None = None
    durable: bool = False


IDS = [UUID(int=number) for number in range(1, 6)]

steps = st.tuples(
    st.sampled_from(["add", "add", "confirm", "release"]),
    st.sampled_from(NETWORKS),
    st.sampled_from(IDS),
    st.none() | st.integers(0, 3),
    # Few lengths, so that their sums hit the window to the millisecond; negative ones set the clock back.
    st.sampled_from([0, 0, 0, 1, 4999, 5000, 10_000, -1, -3000]).map(lambda ms: timedelta(milliseconds=ms)),
)


@given(st.lists(steps, max_size=40), st.integers(-1, 3))
def test_packed_acceptances_equal_a_plain_list_of_them(
    steps: list[tuple[str, bytes, UUID, int | None, timedelta]], offset: int
) -> None:
    taken, plain, now = LocalAcceptances(WINDOW, 100), dict[bytes, list[One]](), START
    for step, key, lead_id, place, later in steps:
        now += later
        others = [one for one in plain.get(key, []) if one.id != lead_id]
        if step == "add":
            taken.add(key, lead_id, now)
            plain.pop(key, None)
            plain[key] = [*(one for one in others if now - one.at < WINDOW), One(lead_id, now)]
            for _ in range(2):
                oldest = next(iter(plain))
                if now - plain[oldest][-1].at < WINDOW:
                    break
                del plain[oldest]
        elif step == "confirm":
            taken.confirm(key, lead_id, place)
            for one in plain.get(key, []):
                if one.id == lead_id:
                    one.durable, one.offset = True, one.offset if place is None else place
        else:
            taken.release(key, lead_id)
            plain[key] = others
            if not others:
                del plain[key]

    assert len(taken) == len(plain)
    for key in NETWORKS:
        known = plain.get(key, [])
        behind = [one for one in known if one.offset is None or one.offset > offset]
        assert [(one.id, one.at) for one in taken.since(key, offset)] == [(one.id, one.at) for one in behind]
        for lead_id in IDS:
            assert taken.has(key, lead_id) == any(one.durable for one in known if one.id == lead_id)


def test_no_more_networks_are_remembered_than_may_be() -> None:
    taken = LocalAcceptances(WINDOW, networks_max=10)
    for number in range(1, 50):
        taken.add(f"10.0.0.{number}".encode(), UUID(int=number), START)

    assert len(taken) == 10
    assert taken.since(b"10.0.0.49", -1)
    assert not taken.since(b"10.0.0.1", -1)
