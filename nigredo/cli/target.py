"""Target of a command: the stack or cluster it speaks to, and the settings of the processes that run there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nigredo.errors import ConfigurationError, NigredoError
from nigredo.settings import Settings
from nigredo.stack import supervisor_socket as control
from nigredo.stack.home import Home

NO_STACK = "-"
"""Value of `--home` for the cluster that the environment names, even when there is a stack in the folder."""
DEFAULT_HOME = ".nigredo"
ASK_DEADLINE_S = 5.0
COMMANDS_OWN = ("WEBHOOK_ENDPOINTS_FILE",)
"""Settings of the command that override the stack's, because senders of further endpoints may run beside the stack."""


@dataclass(frozen=True, slots=True)
class Target:
    """A stack in a folder, or the cluster that the environment names."""

    home: Home | None
    chosen_from: str | None
    """The other possible target; None when there is only one."""
    environment: Mapping[str, str]
    """Settings of the running stack, or the command's own when no stack reports them."""
    why_own: str | None
    """Reason for using the command's own settings; None when the running stack reported its settings."""

    def part_environment(self, part: str, *, role: str) -> Mapping[str, str]:
        """Return the environment of a process of the target. role: the database role."""
        if self.home is None:
            return self.environment
        return self.home.part_environment(self.environment, part, role=role, operator=True)

    def describe(self) -> dict[str, str | None]:
        """Return home and Kafka address, for a JSON document."""
        kafka = self.part_environment("command", role="nigredo_app").get("KAFKA_BOOTSTRAP_SERVERS")
        return {
            "home": None if self.home is None else str(self.home.dir),
            "kafka": kafka or Settings.default("KAFKA_BOOTSTRAP_SERVERS"),
        }

    def __str__(self) -> str:
        """Return home and Kafka address, for a sentence."""
        kafka = self.describe()["kafka"]
        return f"Kafka at {kafka}" if self.home is None else f"the stack in {self.home.dir} (Kafka at {kafka})"


def find_target(folder: Path, environment: Mapping[str, str], *, named: bool) -> Target:
    """Return the target of a command.

    named: whether `--home` was given, which decides between stack and environment. Raises ConfigurationError for a
    named folder without a stack, and when stack and environment name different clusters and neither was chosen.
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
    stack_settings, why_own = _settings_of_stack(home)
    settings = {name: text for name, text in environment.items() if why_own or name not in Settings.names()}
    settings |= stack_settings
    settings |= {name: environment[name] for name in COMMANDS_OWN if environment.get(name)}
    return Target(home, f"{' and '.join(others)} of the environment" if others else None, settings, why_own)


def _without_stack(environment: Mapping[str, str], other: str | None) -> Target:
    return Target(None, other, environment, "no stack of `nigredo up` is asked")


def _settings_of_stack(home: Home) -> tuple[Mapping[str, str], str | None]:
    """Return the settings that the running stack was started with, or none and the reason."""
    try:
        answer = control.ask(home, {"do": "environment"}, deadline_s=ASK_DEADLINE_S)
        return {str(name): str(text) for name, text in answer["environment"].items()}, None
    except (NigredoError, KeyError, OSError) as error:
        # Kafka and the database may still run: the supervisor was killed, or is of an older release.
        return {}, str(error)


def _same(name: str, ours: str, theirs: str) -> bool:
    return _ADDRESSES[name](ours) == _ADDRESSES[name](theirs)


def _plain(text: str) -> object:
    return text.strip().rstrip("/").replace("localhost", "127.0.0.1")


def _database(text: str) -> object:
    # Imported here, because psycopg loads more slowly than everything else that a command needs to start.
    import psycopg
    from psycopg.conninfo import conninfo_to_dict

    try:
        found = conninfo_to_dict(text)
    except psycopg.Error:
        return text
    return _plain(str(found.get("host") or "")), str(found.get("port") or 5432), found.get("dbname")


_ADDRESSES = {"KAFKA_BOOTSTRAP_SERVERS": _plain, "SCHEMA_REGISTRY_URL": _plain, "DATABASE_URL": _database}
"""Settings that name a cluster, each with the function that normalises its spelling."""
