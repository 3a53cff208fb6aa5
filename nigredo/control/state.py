"""Control state: live settings, IP blocks, API keys and leave requests from `nigredo.control`, cached by each process.

Keys are `kind:name`. The kinds here are `setting` (a live setting, by the name of its environment variable), `ip-block`
(a network in CIDR form), `api-key` (by its id) and `leave` (a consumer group whose members leave, always with an end);
other kinds are defined by their readers.

A setting or block with an end covers the permanent entry of the same key: the record carries both, the permanent one in
fields of `value` with the prefix `permanent.`, so that an earlier release reads the record as before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from nigredo.avro.codec import Codec, Undecodable
from nigredo.clock import Clock, utc_now
from nigredo.control.api_keys import ApiKey, from_value
from nigredo.errors import ConfigurationError
from nigredo.kafka.materialized_view import Row
from nigredo.networks import Address, Network, parse_network, unmapped
from nigredo.observability.logs import get_logger
from nigredo.settings import Settings
from schemas.events import ControlEntry
from schemas.topics import CONTROL

log = get_logger()

SETTING = "setting"
IP_BLOCK = "ip-block"
API_KEY = "api-key"
LEAVE = "leave"
ENDPOINT = "endpoint"
"""Kind of the entry with the lead partitions that an endpoint started with; shows when its group has lost an offset."""

FALLS_BACK = (SETTING, IP_BLOCK)
"""Kinds whose temporary entry falls back to the permanent one. An API key with an end has no permanent entry."""
_PERMANENT = "permanent."

_BITS = {4: 32, 6: 128}


class NetworkSet:
    """Set of networks for address look-ups; the cost grows with the number of prefix lengths, not of networks."""

    def __init__(self, networks: Iterable[Network] = ()) -> None:
        self._by_length: dict[tuple[int, int], set[int]] = {}
        for network in networks:
            shift = _BITS[network.version] - network.prefixlen
            found = self._by_length.setdefault((network.version, shift), set())
            found.add(int(network.network_address) >> shift)

    def cover(self, address: Address) -> bool:
        """Return whether an address lies in one of the networks; an IPv4-mapped address counts as the IPv4 address."""
        if not self._by_length:
            return False
        address = unmapped(address)
        number, version = int(address), address.version
        return any(v == version and number >> shift in found for (v, shift), found in self._by_length.items())


@dataclass(frozen=True, slots=True)
class Control:
    """Immutable snapshot of the control state in effect."""

    settings: Settings
    blocked: NetworkSet = field(default_factory=NetworkSet)
    api_keys: Mapping[str, ApiKey] = field(default_factory=dict)
    """API keys by id."""
    leaving: frozenset[str] = frozenset()
    """Consumer groups whose members must leave while the group's offsets are reset."""


class ControlView:
    """Control state for a `MaterializedView` of `nigredo.control`, in `current`; readable from any thread."""

    def __init__(self, settings: Settings, codec: Codec, clock: Clock = utc_now) -> None:
        self.current = Control(settings)
        self.applied: Mapping[int, int] = {}
        """Last offset of each partition that `current` includes; replaced as a whole, readable from any thread."""
        self._settings = settings
        self._codec = codec
        self._clock = clock
        self._entries: dict[bytes, ControlEntry] = {}
        self._loaded = False
        self._reached: dict[int, int] = {}
        self._next_expiry: datetime | None = None

    def begin(self) -> None:
        """Start a new load; `current` keeps its value until the load is complete."""
        self._entries, self._reached, self._loaded = {}, {}, False

    def apply(self, rows: Sequence[Row]) -> None:
        """Apply records, and expire entries that have ended. Raises DependencyDown while a schema cannot be fetched."""
        for row in rows:
            self._store(row)
            self._reached[row.partition] = row.offset
        due = self._next_expiry is not None and self._clock() >= self._next_expiry
        if self._loaded and (rows or due):
            self._refresh()

    def loaded(self) -> None:
        """Put the entries applied since `begin` into effect."""
        self._loaded = True
        self._refresh()

    def _store(self, row: Row) -> None:
        if row.key is None:
            return
        if row.value is None:
            self._entries.pop(row.key, None)
            return
        entry = decode_entry(self._codec, row.key, row.value)
        if entry is not None:
            self._entries[row.key] = entry

    def _refresh(self) -> None:
        held = held_at(self._clock(), self._entries.values())
        self._next_expiry = min((entry.expires_at for entry in held if entry.expires_at), default=None)
        self.current = control_of(self._settings, held)
        self.applied = dict(self._reached)


def held_at(now: datetime, entries: Iterable[ControlEntry]) -> list[ControlEntry]:
    """Return the entries in effect at `now`: unexpired entries, and the permanent ones under expired entries."""
    found = (entry if entry.expires_at is None or now < entry.expires_at else beneath(entry) for entry in entries)
    return [entry for entry in found if entry is not None]


def beneath(entry: ControlEntry) -> ControlEntry | None:
    """Return the permanent entry: this entry, or the covered one that follows its end; None without one."""
    if entry.expires_at is None:
        return entry
    fields = {name.removeprefix(_PERMANENT): text for name, text in entry.value.items() if name.startswith(_PERMANENT)}
    try:
        set_by, set_at = fields["by"], datetime.fromisoformat(fields["at"])
    except (KeyError, ValueError):
        return None
    value = {name.removeprefix("value."): text for name, text in fields.items() if name.startswith("value.")}
    return replace(entry, value=value, set_by=set_by, set_at=set_at, expires_at=None)


def covering(entry: ControlEntry, permanent: ControlEntry | None) -> ControlEntry:
    """Return a copy of an entry with an end that carries the permanent entry it covers; a permanent entry unchanged."""
    if permanent is None or entry.expires_at is None:
        return entry
    carried = {f"{_PERMANENT}value.{name}": text for name, text in permanent.value.items()}
    carried |= {f"{_PERMANENT}by": permanent.set_by, f"{_PERMANENT}at": permanent.set_at.isoformat()}
    return replace(entry, value={**entry.value, **carried})


def control_of(settings: Settings, entries: Iterable[ControlEntry]) -> Control:
    """Return the control state of entries in effect, as returned by `held_at`.

    An invalid entry is logged and ignored.
    """
    blocked: list[Network] = []
    keys: dict[str, ApiKey] = {}
    leaving: set[str] = set()
    for entry in entries:
        try:
            if entry.kind == SETTING:
                settings = settings.overlaid({entry.name: entry.value["value"]})
            elif entry.kind == IP_BLOCK:
                blocked.append(parse_network(entry.name))
            elif entry.kind == API_KEY:
                keys[entry.name] = from_value(entry.name, entry.value)
            elif entry.kind == LEAVE and entry.expires_at is not None:
                # A request without an end is ignored, because members would never return if its command died.
                leaving.add(entry.name)
        except (ConfigurationError, KeyError, ValueError) as error:
            log.error("control entry ignored", kind=entry.kind, error=type(error).__name__)
    return Control(settings, NetworkSet(blocked), keys, frozenset(leaving))


def decode_entry(codec: Codec, key: bytes, value: bytes) -> ControlEntry | None:
    """Return the entry of a record; None, logged, for an undecodable value, so that the earlier entry stays.

    Raises DependencyDown while the schema cannot be fetched.
    """
    try:
        entry = codec.decode(CONTROL, value)
    except Undecodable as error:
        log.error("control entry not decoded", key=key.decode("utf-8", "replace")[:100], error=str(error))
        return None
    return entry if isinstance(entry, ControlEntry) else None


def key_of(kind: str, name: str) -> bytes:
    """Return the record key of an entry."""
    return f"{kind}:{name}".encode()


def setting_entry(name: str, text: str) -> Mapping[str, str]:
    """Return the entry value of a live setting.

    Raises ConfigurationError for an unknown name, a setting that is read at the start only, or an invalid text.
    """
    if name not in Settings.live_names():
        Settings.parse(name, "")  # Raises for an unknown name.
        raise ConfigurationError(
            f"{name} is read at the start only; live settings are {', '.join(Settings.live_names())}"
        )
    Settings.parse(name, text)
    return {"value": text}
