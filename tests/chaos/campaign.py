"""One run: a stack of its own, a load, faults meanwhile, then quiet, then the judgement."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import psycopg
from confluent_kafka import KafkaException

from nigredo.errors import NigredoError
from nigredo.testing import Stack, running_stack
from tests.chaos.evidence import Offsets, collect
from tests.chaos.faults import KILL, Damage, Saboteur, change_limit, plan_faults
from tests.chaos.judgement import Findings, judge
from tests.chaos.load import EXEMPT, Answers, Clients, Gate, plan_forms
from tests.chaos.processes import Extra, Processes

START_DEADLINE_S = 60.0
QUIET_DEADLINE_S = 180.0
QUIET_LOOKS = 3
"""So often in a row nobody is behind, since one group's output is another's input."""
SHOW_EVERY_S = 1.0


SECOND = ("rate-limiter", "ingest")


class ChaosError(Exception):
    """The run came to no judgement; the text says why."""


@dataclass(frozen=True, slots=True)
class Campaign:
    """Plan of a campaign. The same seed plans the same forms and the same faults."""

    seed: int
    faults: int
    submissions: int
    networks: int
    targets: Sequence[str]
    actions: Sequence[str] = (KILL,)
    second: Sequence[str] = SECOND
    """Parts that run twice, so that there are groups of several, and nodes that do not know what the other took."""
    rate: float = 100.0
    """Forms a second."""
    again_per_crash: int | None = None
    """Deliveries that one crash of the sink may repeat; what may be in flight at once unless told."""
    deadline_s: float = 3600.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """Outcome of a campaign."""

    campaign: Campaign
    answers: Answers
    damage: Damage
    findings: Findings
    again_max: int
    seconds: float


class Show(Protocol):
    """Where progress is shown."""

    def tell(self, line: str) -> None:
        """Tell of a step."""

    def count(self, sent: int, faults: int) -> None:
        """Tell how far it is."""


def run(campaign: Campaign, show: Show) -> Outcome:
    """Carry a campaign out and judge it. Raises ChaosError when there is nothing to judge."""
    began = time.monotonic()
    show.tell("starting a stack")
    with running_stack() as stack:
        settings = stack.settings()
        answers, damage = asyncio.run(_run(stack, campaign, show, began + campaign.deadline_s))
        show.tell("reading everything and judging it")
        try:
            evidence = collect(stack, answers)
        except (NigredoError, KafkaException) as error:
            raise ChaosError(f"what was left cannot be read: {error}") from error
        # What is in flight breaks off with the receiver too, and with Kafka goes what would tell that it arrived.
        crashes = damage.of("webhook-sender", "fibonacci", "kafka")
        again_max = crashes * (campaign.again_per_crash or settings.webhook_in_flight_max)
        findings = judge(evidence, again_max=again_max)
        findings.broken += damage.problems
        return Outcome(campaign, answers, damage, findings, again_max, time.monotonic() - began)


async def _run(stack: Stack, campaign: Campaign, show: Show, give_up: float) -> tuple[Answers, Damage]:
    processes = Processes(stack, extras := [Extra(stack, part) for part in campaign.second])
    nodes = [stack.url, *(f"http://127.0.0.1:{extra.port}" for extra in extras if extra.part == "ingest")]
    faults = plan_faults(campaign.seed, campaign.faults, campaign.submissions, campaign.targets, campaign.actions)
    try:
        async with asyncio.timeout(give_up - time.monotonic()), processes.further():
            await _until_ready(processes, START_DEADLINE_S)
            await asyncio.to_thread(_configure, stack, f"RATE_LIMIT_EXEMPT={EXEMPT}")
            gate = Gate(campaign.submissions, campaign.rate, [fault.at for fault in faults])
            forms = plan_forms(campaign.seed, campaign.submissions, campaign.networks)
            clients = Clients([f"{node}/api/leads" for node in nodes], forms, gate, campaign.seed)
            saboteur = Saboteur(processes, gate, faults, show.tell)
            showing = asyncio.create_task(_show(gate, show))
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(clients.run())
                    group.create_task(saboteur.run())
                    group.create_task(
                        change_limit(gate, len(forms), lambda limit: _configure(stack, f"RATE_LIMIT_PER_HOUR={limit}"))
                    )
            finally:
                showing.cancel()
            show.count(gate.sent, gate.faults_done)
            show.tell("waiting until everything is worked off")
            await _until_ready(processes, START_DEADLINE_S)
            await _until_quiet(Offsets(stack))
    except TimeoutError:
        raise ChaosError(f"not done within {campaign.deadline_s:g} s") from None
    except ExceptionGroup as errors:
        raise _first(errors) from None
    return clients.answers, saboteur.damage


def _first(error: Exception) -> Exception:
    """Return the error that ended the others."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


def _configure(stack: Stack, assignment: str) -> None:
    done = stack.nigredo("config", "set", assignment)
    if done.code != 0:
        raise NigredoError(done.err.strip())


async def _show(gate: Gate, show: Show) -> None:
    while True:
        show.count(gate.sent, gate.faults_done)
        await asyncio.sleep(SHOW_EVERY_S)


async def _until_ready(processes: Processes, within_s: float) -> None:
    give_up = time.monotonic() + within_s
    while not await processes.all_ready():
        if time.monotonic() > give_up:
            raise ChaosError(f"not everything is ready within {within_s:g} s")
        await asyncio.sleep(0.2)


async def _until_quiet(offsets: Offsets) -> None:
    """Wait until no group is behind any more; if one stays behind, the judgement says so."""
    give_up, quiet = time.monotonic() + QUIET_DEADLINE_S, 0
    while quiet < QUIET_LOOKS and time.monotonic() < give_up:
        try:
            lag = await asyncio.to_thread(offsets.lag)
        except (KafkaException, psycopg.Error):
            quiet = 0
        else:
            quiet = quiet + 1 if not any(lag.values()) else 0
        await asyncio.sleep(0.5)
