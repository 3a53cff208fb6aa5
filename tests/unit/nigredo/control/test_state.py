"""Control state: current entries are in effect, and invalid records are ignored."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nigredo.avro.codec import Codec
from nigredo.control.state import (
    IP_BLOCK,
    SETTING,
    ControlView,
    NetworkSet,
    beneath,
    covering,
    held_at,
    key_of,
    setting_entry,
)
from nigredo.errors import ConfigurationError
from nigredo.kafka.materialized_view import Row
from nigredo.networks import unmapped
from nigredo.settings import Settings
from schemas.events import ControlEntry
from schemas.topics import CONTROL, load_schema

START = datetime(2026, 1, 1, tzinfo=UTC)


class OneSchema:
    """A registry with one schema."""

    def id_of(self, *_: object) -> int:
        return 1

    def schema_of(self, _: int) -> Any:
        return load_schema("control")


def make_codec() -> Codec:
    codec = Codec(OneSchema())
    codec.prepare([CONTROL])
    return codec


CODEC = make_codec()


class At:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now


def keeper(clock: At | None = None, **environment: str) -> ControlView:
    keeper = ControlView(Settings.from_environment(environment), CODEC, clock or At())
    keeper.begin()
    keeper.loaded()
    return keeper


def row(kind: str, name: str, value: dict[str, str] | None, *, lasts_s: int | None = None) -> Row:
    until = None if lasts_s is None else START + timedelta(seconds=lasts_s)
    entry = None if value is None else ControlEntry(kind, name, value, "test", START, until)
    return Row(key_of(kind, name), None if entry is None else CODEC.encode(CONTROL, entry), 0, 0, 0)


def limit(text: str, **more: Any) -> Row:
    return row(SETTING, "RATE_LIMIT_PER_HOUR", {"value": text}, **more)


def test_the_environment_gives_the_start_value_and_a_change_wins_until_it_is_undone() -> None:
    found = keeper(RATE_LIMIT_PER_HOUR="7", WEBHOOK_TIMEOUT_SECONDS="3")
    assert found.current.settings.rate_limit_per_hour == 7

    found.apply([limit("20")])
    assert found.current.settings.rate_limit_per_hour == 20
    assert found.current.settings.webhook_timeout_s == 3

    found.apply([row(SETTING, "RATE_LIMIT_PER_HOUR", None)])
    assert found.current.settings.rate_limit_per_hour == 7


def test_a_change_for_a_time_ends_by_itself() -> None:
    clock = At()
    found = keeper(clock)
    found.apply([limit("20", lasts_s=60)])
    assert found.current.settings.rate_limit_per_hour == 20

    clock.now += timedelta(seconds=60)
    found.apply([])

    assert found.current.settings.rate_limit_per_hour == 10


def test_entries_stay_in_effect_during_a_reload() -> None:
    found = keeper()
    found.apply([limit("20")])

    found.begin()
    found.apply([limit("30")])
    assert found.current.settings.rate_limit_per_hour == 20

    found.loaded()
    assert found.current.settings.rate_limit_per_hour == 30


def test_a_change_counts_as_applied_once_it_holds() -> None:
    found = keeper()
    found.apply([limit("20")._replace(partition=2, offset=7)])
    assert found.applied == {2: 7}

    found.begin()
    found.apply([limit("30")._replace(partition=2, offset=9)])
    assert (found.applied, found.current.settings.rate_limit_per_hour) == ({2: 7}, 20)

    found.loaded()
    assert (found.applied, found.current.settings.rate_limit_per_hour) == ({2: 9}, 30)


@pytest.mark.parametrize(
    "strange",
    [
        limit("many"),
        limit("0"),
        row(SETTING, "RATE_LIMIT_PER_HOUR", {}),
        row(SETTING, "NO_SUCH_SETTING", {"value": "1"}),
        row(SETTING, "DATABASE_URL", {"value": "host=evil"}),
        row(IP_BLOCK, "nowhere", {}),
        row("kind-of-tomorrow", "x", {"value": "1"}),
        Row(b"setting:RATE_LIMIT_PER_HOUR", b"no avro", 0, 0, 0),
        Row(None, b"", 0, 0, 0),
    ],
)
def test_an_invalid_record_changes_nothing(strange: Row) -> None:
    found, before = keeper(), keeper().current.settings

    found.apply([strange, row(IP_BLOCK, "192.0.2.0/24", {})])

    assert found.current.settings == before
    assert found.current.blocked.cover(ip_address("192.0.2.9"))


def test_only_live_settings_can_be_set() -> None:
    assert setting_entry("RATE_LIMIT_PER_HOUR", "20") == {"value": "20"}
    for name, text in (("RATE_LIMIT_PER_HOUR", "0"), ("DATABASE_URL", "x"), ("NO_SUCH_SETTING", "x")):
        with pytest.raises(ConfigurationError, match=name):
            setting_entry(name, text)


networks = st.lists(st.ip_addresses().flatmap(lambda a: st.integers(0, a.max_prefixlen).map(lambda p: f"{a}/{p}")))


@given(networks, st.ip_addresses())
def test_an_address_is_covered_when_one_of_the_networks_holds_it(given_: list[str], address: Any) -> None:
    known = [ip_network(text, strict=False) for text in given_]

    assert NetworkSet(known).cover(address) == any(unmapped(address) in network for network in known)


def test_a_mapped_address_is_the_ipv4_address() -> None:
    blocked = NetworkSet([ip_network("192.0.2.1/32")])

    assert blocked.cover(ip_address("::ffff:192.0.2.1"))
    assert not blocked.cover(ip_address("::ffff:192.0.2.2"))


def entry(text: str, *, by: str = "ana", lasts_s: int | None = None) -> ControlEntry:
    until = None if lasts_s is None else START + timedelta(seconds=lasts_s)
    return ControlEntry(SETTING, "RATE_LIMIT_PER_HOUR", {"value": text}, by, START, until)


def test_a_temporary_change_falls_back_to_the_permanent_one() -> None:
    clock = At()
    found = keeper(clock, RATE_LIMIT_PER_HOUR="7")
    over = covering(entry("50", by="bia", lasts_s=60), entry("20"))
    found.apply([Row(key_of(SETTING, over.name), CODEC.encode(CONTROL, over), 0, 0, 0)])
    assert found.current.settings.rate_limit_per_hour == 50

    clock.now += timedelta(seconds=60)
    found.apply([])
    assert found.current.settings.rate_limit_per_hour == 20

    found.begin()
    found.apply([Row(key_of(SETTING, over.name), CODEC.encode(CONTROL, over), 0, 0, 0)])
    found.loaded()
    assert found.current.settings.rate_limit_per_hour == 20


def test_the_permanent_change_is_found_whole_however_often_it_is_covered() -> None:
    permanent = entry("20")
    once = covering(entry("50", by="bia", lasts_s=60), permanent)
    twice = covering(entry("60", by="cid", lasts_s=90), beneath(once))

    assert beneath(twice) == permanent == beneath(permanent)
    assert held_at(START + timedelta(seconds=90), [twice]) == [permanent]
    assert held_at(START, [twice]) == [twice]
    # The entry's own fields are unchanged, as an earlier release reads them.
    assert (twice.value["value"], twice.expires_at) == ("60", START + timedelta(seconds=90))


@pytest.mark.parametrize("spoilt", [{}, {"permanent.by": "x"}, {"permanent.by": "x", "permanent.at": "noon"}])
def test_without_a_permanent_change_that_can_be_read_nothing_comes_back(spoilt: dict[str, str]) -> None:
    ended = entry("50", lasts_s=60)
    ended = ControlEntry(ended.kind, ended.name, {**ended.value, **spoilt}, "bia", START, ended.expires_at)

    assert held_at(START + timedelta(seconds=60), [ended]) == []


def test_a_block_of_a_mapped_network_blocks_the_ipv4_network() -> None:
    found = keeper()
    found.apply([row(IP_BLOCK, "::ffff:198.51.100.7/128", {})])

    assert found.current.blocked.cover(ip_address("198.51.100.7"))
