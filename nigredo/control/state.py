"""What operators change while the product runs: `nigredo.control`, kept in memory by every process that obeys it.

Keys are `kind:name`. The kinds here are `setting` (a live setting by the name of its environment variable), `ip-block`
(a network in CIDR form), `api-key` (by its id) and `leave` (a consumer group whose members stay away, always with an
end); other kinds belong to whoever reads them.

A setting or a block with an end covers the one without an end that it was put over: the record carries both, in fields
of `value` that begin with `permanent.`, so that a release that does not know them obeys the record as it always did.
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
"""The partitions of the leads that an endpoint was begun with: a group that lost an offset is known by it."""

FALLS_BACK = (SETTING, IP_BLOCK)
"""Kinds whose temporary entry gives way to the permanent one again. A key that was given an end has no other."""
_PERMANENT = "permanent."

_BITS = {4: 32, 6: 128}


class NetworkSet:
    """Networks to look an address up in; a look-up costs as many steps as there are lengths of prefix, not networks."""

    def __init__(self, networks: Iterable[Network] = ()) -> None:
        self._by_length: dict[tuple[int, int], set[int]] = {}
        for network in networks:
            shift = _BITS[network.version] - network.prefixlen
            found = self._by_length.setdefault((network.version, shift), set())
            found.add(int(network.network_address) >> shift)

    def cover(self, address: Address) -> bool:
        """Say whether an address lies in one of them; an IPv4-mapped IPv6 address is the IPv4 address."""
        if not self._by_length:
            return False
        address = unmapped(address)
        number, version = int(address), address.version
        return any(v == version and number >> shift in found for (v, shift), found in self._by_length.items())


@dataclass(frozen=True, slots=True)
class Control:
    """What holds at present. Replaced as a whole, never changed."""

    settings: Settings
    blocked: NetworkSet = field(default_factory=NetworkSet)
    api_keys: Mapping[str, ApiKey] = field(default_factory=dict)
    """By their ids."""
    leaving: frozenset[str] = frozenset()
    """Consumer groups whose members stay away while their offsets are set."""


class ControlView:
    """Keeps `current` true for a `TopicView` of `nigredo.control`; read it from any thread."""

    def __init__(self, settings: Settings, codec: Codec, clock: Clock = utc_now) -> None:
        self.current = Control(settings)
        self.applied: Mapping[int, int] = {}
        """The last offset of each partition that `current` goes by; read from any thread, replaced as a whole."""
        self._settings = settings
        self._codec = codec
        self._clock = clock
        self._entries: dict[bytes, ControlEntry] = {}
        self._loaded = False
        self._reached: dict[int, int] = {}
        self._next_expiry: datetime | None = None

    def begin(self) -> None:
        """Start afresh; `current` stands meanwhile."""
        self._entries, self._reached, self._loaded = {}, {}, False

    def apply(self, rows: Sequence[Row]) -> None:
        """Take changes. Raises DependencyDown while a schema cannot be fetched."""
        for row in rows:
            self._take(row)
            self._reached[row.partition] = row.offset
        due = self._next_expiry is not None and self._clock() >= self._next_expiry
        if self._loaded and (rows or due):
            self._refresh()

    def loaded(self) -> None:
        """Make what came since `begin` hold."""
        self._loaded = True
        self._refresh()

    def _take(self, row: Row) -> None:
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
    """Return the entries that hold at a time: those that have not ended, and the permanent ones beneath ended ones."""
    found = (entry if entry.expires_at is None or now < entry.expires_at else beneath(entry) for entry in entries)
    return [entry for entry in found if entry is not None]


def beneath(entry: ControlEntry) -> ControlEntry | None:
    """Return the permanent entry: this one, or the one that holds again once this one has ended; None without one."""
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
    """Return an entry with an end that carries the permanent one it covers."""
    if permanent is None or entry.expires_at is None:
        return entry
    carried = {f"{_PERMANENT}value.{name}": text for name, text in permanent.value.items()}
    carried |= {f"{_PERMANENT}by": permanent.set_by, f"{_PERMANENT}at": permanent.set_at.isoformat()}
    return replace(entry, value={**entry.value, **carried})


def control_of(settings: Settings, entries: Iterable[ControlEntry]) -> Control:
    """Return the control by entries that hold, as `held_at` finds them.

    One that cannot be understood changes nothing, and is logged.
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
                # Without an end it would keep them away for good if whoever wrote it died.
                leaving.add(entry.name)
        except (ConfigurationError, KeyError, ValueError) as error:
            log.error("a control entry is not understood", kind=entry.kind, error=type(error).__name__)
    return Control(settings, NetworkSet(blocked), keys, frozenset(leaving))


def decode_entry(codec: Codec, key: bytes, value: bytes) -> ControlEntry | None:
    """Return an entry; None for one that nobody can read, which is logged: what was there before stands.

    Raises DependencyDown while its schema cannot be fetched.
    """
    try:
        entry = codec.decode(CONTROL, value)
    except Undecodable as error:
        log.error("a control entry cannot be read", key=key.decode("utf-8", "replace")[:100], error=str(error))
        return None
    return entry if isinstance(entry, ControlEntry) else None


def key_of(kind: str, name: str) -> bytes:
    """Return the record's key."""
    return f"{kind}:{name}".encode()


def setting_entry(name: str, text: str) -> Mapping[str, str]:
    """Return a live setting's value as it is kept. Raises ConfigurationError for what could not work."""
    if name not in Settings.live_names():
        Settings.parse(name, "")  # Tells of a name that there is not.
        raise ConfigurationError(
            f"{name} is read at the start only; what may change while it runs: {', '.join(Settings.live_names())}"
        )
    Settings.parse(name, text)
    return {"value": text}
