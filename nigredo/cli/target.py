"""The stack or the cluster that a command speaks to, and the settings of the processes that run there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nigredo.errors import ConfigurationError, NigredoError
from nigredo.settings import Settings
from nigredo.stack import supervisor_socket as control
from nigredo.stack.home import Home

NO_STACK = "-"
"""As `--home`: the cluster that the environment names, although there is a stack here."""
DEFAULT_HOME = ".nigredo"
ASK_DEADLINE_S = 5.0
COMMANDS_OWN = ("WEBHOOK_ENDPOINTS_FILE",)
"""Wins over the stack's where the command has it: senders of further endpoints may run beside the stack."""


@dataclass(frozen=True, slots=True)
class Target:
    """The stack in a folder, or without one the cluster that the environment names."""

    home: Home | None
    chosen_from: str | None
    """What else could have been meant; None when there is one possibility."""
    environment: Mapping[str, str]
    """The settings of the running stack; those of the command where no stack tells them."""
    why_own: str | None
    """Why the settings are those of the command; None when the running stack told them."""

    def part_environment(self, part: str, *, role: str) -> Mapping[str, str]:
        """Return the environment of a process there."""
        if self.home is None:
            return self.environment
        return self.home.part_environment(self.environment, part, role=role, operator=True)

    def describe(self) -> dict[str, str | None]:
        """Return it as a JSON document shows it."""
        kafka = self.part_environment("command", role="nigredo_app").get("KAFKA_BOOTSTRAP_SERVERS")
        return {
            "home": None if self.home is None else str(self.home.dir),
            "kafka": kafka or Settings.default("KAFKA_BOOTSTRAP_SERVERS"),
        }

    def __str__(self) -> str:
        """Return it as a sentence names it."""
        kafka = self.describe()["kafka"]
        return f"Kafka at {kafka}" if self.home is None else f"the stack in {self.home.dir} (Kafka at {kafka})"


def find_target(folder: Path, environment: Mapping[str, str], *, named: bool) -> Target:
    """Return what a command speaks to.

    named: whether `--home` was given, so that nothing is left to choose. Raises ConfigurationError for a folder that
    was named and has no stack, and when a stack and the environment name different clusters and neither was chosen.
    """
    if str(folder) == NO_STACK:
        local = Home.open(Path(environment.get("NIGREDO_HOME") or DEFAULT_HOME))
        return _without_stack(environment, f"the stack in {local.dir}" if local.exists else None)
    home = Home.open(folder)
    if not home.exists:
        if named or environment.get("NIGREDO_HOME"):
            raise ConfigurationError(f"there is no stack in {home.dir}; --home {NO_STACK} is for the environment's")
        given = bool(environment.get("KAFKA_BOOTSTRAP_SERVERS"))
        return _without_stack(environment, None if given else f"a stack: there is none in {home.dir}")
    own = home.part_environment({}, "command")
    others = [name for name in _ADDRESSES if environment.get(name) and not _same(name, own[name], environment[name])]
    if others and not named:
        raise ConfigurationError(
            f"the stack in {home.dir} and {' and '.join(others)} of the environment name different clusters: "
            f"--home {folder} is for the stack, --home {NO_STACK} for the environment's"
        )
    told, why_own = _told(home)
    settings = {name: text for name, text in environment.items() if why_own or name not in Settings.names()}
    settings |= told
    settings |= {name: environment[name] for name in COMMANDS_OWN if environment.get(name)}
    return Target(home, f"{' and '.join(others)} of the environment" if others else None, settings, why_own)


def _without_stack(environment: Mapping[str, str], other: str | None) -> Target:
    return Target(None, other, environment, "no stack of `nigredo up` is asked")


def _told(home: Home) -> tuple[Mapping[str, str], str | None]:
    """Return the settings that the running stack was started with, or why they are not known."""
    try:
        answer = control.ask(home, {"do": "environment"}, deadline_s=ASK_DEADLINE_S)
        return {str(name): str(text) for name, text in answer["environment"].items()}, None
    except (NigredoError, KeyError, OSError) as error:
        # Kafka and the database may be there all the same: after the supervisor was killed, or one of an older release.
        return {}, str(error)


def _same(name: str, ours: str, theirs: str) -> bool:
    return _ADDRESSES[name](ours) == _ADDRESSES[name](theirs)


def _plain(text: str) -> object:
    return text.strip().rstrip("/").replace("localhost", "127.0.0.1")


def _database(text: str) -> object:
    # Imported here: psycopg takes longer than all else that a command needs before it speaks to anything.
    import psycopg
    from psycopg.conninfo import conninfo_to_dict

    try:
        found = conninfo_to_dict(text)
    except psycopg.Error:
        return text
    return _plain(str(found.get("host") or "")), str(found.get("port") or 5432), found.get("dbname")


_ADDRESSES = {"KAFKA_BOOTSTRAP_SERVERS": _plain, "SCHEMA_REGISTRY_URL": _plain, "DATABASE_URL": _database}
"""The settings that name a cluster, each with what makes two spellings the same address."""
