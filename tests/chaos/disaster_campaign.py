"""Disasters one after another on a stack: forms afterwards, the word of `status`, the named way back, the judgement."""

from __future__ import annotations

import random
import re
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count

import httpx
import psycopg
from confluent_kafka import KafkaException

from nigredo.errors import DependencyDown, NigredoError
from nigredo.testing import Stack, any_client, eventually, running_stack
from tests.chaos.disasters import DISASTERS, Disaster, Timing, strike
from tests.chaos.evidence import Offsets, collect
from tests.chaos.judgement import Findings, judge_afterwards
from tests.chaos.load import KEYED, Answers, Form

FORMS = 40
"""After each disaster, each of a client network of its own."""
FORMS_BEFORE = 40
"""What a disaster may take: ten records and more of each partition."""
WELL_WITHIN_S = 120.0
SENT_WITHIN_S = 60.0
"""After it, forms that were not accepted yet are sent after the cure."""
SAID_WITHIN_S = 90.0
"""Until then all forms are handled, or the product says that it is not well."""
NOTICED_WITHIN_S = 30.0
"""After the last form; from then on `well` is wrong while one is missing."""
HANDLED_WITHIN_S = 120.0
LOOKS = 3
"""So often in a row the product says that it is not well before an operator believes it."""
CURES_MAX = 3
LOOK_EVERY_S = 1.0
NOT_YET = "not everything is repaired"
CURE = re.compile(r"nigredo (recover|schemas repair|topics ensure)")
ANSWERS_OF_A_BUSY_NODE = (500, 502, 503, 504)
_numbers = count(secrets.randbelow(2**30) * 1000)
Tell = Callable[[str], None]


@dataclass(slots=True)
class Outcome:
    """One disaster in one timing, and what came of it."""

    disaster: str
    timing: Timing
    findings: Findings
    said: list[str] = field(default_factory=list)
    """The first words of the product about it; empty when it needed no person."""
    cures: list[str] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Word:
    """The word of `nigredo status` and `nigredo webhook status` at one moment."""

    status_well: bool
    webhook_well: bool
    text: str

    @property
    def well(self) -> bool:
        """Whether both commands say that all is well."""
        return self.status_well and self.webhook_well

    @property
    def cure(self) -> str | None:
        """The command that the text names as the way back."""
        found = CURE.search(self.text)
        return None if found is None else found[1]


def undergo(stack: Stack, disaster: Disaster, timing: Timing, tell: Tell) -> Outcome:
    """Do a disaster to a stack that is well, follow the product's own advice, and judge what became of the forms.

    Raises NigredoError when the stack is not well to begin with.
    """
    began = time.monotonic()
    ensure_well(stack)
    httpx.delete(f"{stack.fibonacci_url}/received", timeout=10).raise_for_status()
    if disaster.prepare is not None:
        disaster.prepare(stack)
    before = Sending(stack, FORMS_BEFORE)
    before.send(within_s=SENT_WITHIN_S)
    eventually(
        lambda: not (undelivered(stack, before.answers) or unstored(stack, before.answers)),
        within_s=HANDLED_WITHIN_S,
        every_s=0.3,
        what="a row and a webhook of each form before the disaster",
    )
    parked = _parked(stack)
    tell(f"{disaster.name} ({timing})")
    after = Sending(stack, FORMS)
    strike(stack, disaster, timing, lambda: after.send(within_s=SENT_WITHIN_S))
    outcome = Outcome(disaster.name, timing, Findings())
    _until_cured(stack, after, outcome, tell)
    if not look(stack).well:
        # Noticed only after all forms were handled, as partitions that were added may be.
        _until_cured(stack, after, outcome, tell)
    broken = list(outcome.findings.broken)
    try:
        ensure_well(stack)
        _until_quiet(stack)
    except (NigredoError, AssertionError) as error:
        broken.append(str(error))
    evidence = collect(stack, after.answers)
    evidence.parked -= parked
    outcome.findings = judge_afterwards(evidence)
    outcome.findings.broken += broken
    if not disaster.loses_leads and (gone := before.answers.taken.keys() - evidence.lead_rows.keys()):
        outcome.findings.lose("leads of before the disaster have no row any more", set(gone))
    outcome.seconds = time.monotonic() - began
    return outcome


def _until_cured(stack: Stack, after: Sending, outcome: Outcome, tell: Tell) -> None:
    """Do what the product says, until every form is handled. What is wrong with its word is noted."""
    for _ in range(CURES_MAX + 1):
        word = _watch(stack, after, outcome)
        if word is None:
            return
        outcome.said.append(word.text)
        cure = word.cure
        if cure is None or len(outcome.cures) == CURES_MAX:
            outcome.findings.broken.append(f"no way back: {word.text}")
            return
        tell(f"  it says: {word.text[:300]}")
        outcome.cures.append(cure)
        done = stack.nigredo(*cure.split(), *(["--yes"] if cure == "recover" else []))
        tell(f"  nigredo {cure}: {(done.out + done.err).strip()[:600]}")
        # An honest word about what is left to do: the next look says whether the same command does it.
        if done.code != 0 and NOT_YET not in done.err:
            outcome.findings.broken.append(f"nigredo {cure} ended with {done.code}: {done.err.strip()[:600]}")
        after.send(within_s=SENT_WITHIN_S)
        if after.unsent:
            outcome.findings.broken.append(f"{after.unsent} forms are not accepted after nigredo {cure}")


def _watch(stack: Stack, after: Sending, outcome: Outcome) -> Word | None:
    """Return the product's word once it says steadily that it is not well; None when all is well, forms included."""
    began, unwell, word = time.monotonic(), 0, None
    while time.monotonic() - began < SAID_WITHIN_S:
        word = look(stack)
        unsent, lost = undelivered(stack, after.answers), unstored(stack, after.answers)
        handled = not (unsent or lost or after.unsent)
        if handled and word.well:
            return None
        # How delivery stands is all that the second command is asked; rows are the first one's.
        well = word.status_well or (word.webhook_well and bool(unsent))
        if well and not handled and (unwell or time.monotonic() - began > NOTICED_WITHIN_S):
            missing = f"{len(lost)} without a row, {len(unsent)} without a webhook"
            outcome.findings.broken.append(f"well, with forms missing ({missing}): {word.text}")
            return word
        unwell = unwell + 1 if not well and word.cure is not None else 0
        if unwell >= LOOKS:
            return word
        time.sleep(LOOK_EVERY_S)
    return word


def look(stack: Stack) -> Word:
    """Ask both commands."""
    with ThreadPoolExecutor(2) as threads:
        status = threads.submit(stack.nigredo, "status")
        webhook = threads.submit(stack.nigredo, "webhook", "status")
    said = status.result().out.splitlines()[1:]
    lines = [line for line in said if line.split()[1:2] != ["ready"]] + [status.result().err.strip()]
    webhook_said = (webhook.result().out or webhook.result().err).partition("\n")[0]
    text = " | ".join(" ".join(line.split()) for line in [*lines, f"webhook status: {webhook_said}"] if line)
    return Word(status.result().code == 0, webhook.result().code == 0, text)


def ensure_well(stack: Stack) -> None:
    """Wait until both commands say that all is well. Raises NigredoError."""
    give_up = time.monotonic() + WELL_WITHIN_S
    while not (word := look(stack)).well:
        if time.monotonic() > give_up:
            raise NigredoError(f"not well within {WELL_WITHIN_S:g} s: {word.text}")
        time.sleep(LOOK_EVERY_S)


def unstored(stack: Stack, answers: Answers) -> set[str]:
    """Return the accepted forms without a row."""
    ids = set(answers.taken)
    try:
        rows = stack.rows("SELECT id::text FROM nigredo.leads WHERE id::text = ANY(%s)", list(ids))
    except psycopg.Error:
        return ids
    return ids - {row[0] for row in rows}


def undelivered(stack: Stack, answers: Answers) -> set[str]:
    """Return the accepted forms without a webhook."""
    delivered = {got["headers"]["webhook-id"] for got in stack.received() if 200 <= got["status"] < 300}
    return answers.taken.keys() - delivered


def _until_quiet(stack: Stack) -> None:
    """Wait until no group is behind; the judgement says so if one stays."""
    offsets, give_up = Offsets(stack), time.monotonic() + HANDLED_WITHIN_S
    while time.monotonic() < give_up:
        try:
            if not any(offsets.lag().values()):
                return
        except (KafkaException, psycopg.Error, KeyError):
            pass
        time.sleep(0.5)


def _parked(stack: Stack) -> int:
    return collect(stack, Answers({})).parked


class Sending:
    """Forms, each of a client network of its own, and the answers that they got."""

    def __init__(self, stack: Stack, many: int) -> None:
        self._stack = stack
        self._left = [Form(next(_numbers), any_client(), KEYED) for _ in range(many)]
        self.answers = Answers({form.number: form for form in self._left})

    @property
    def unsent(self) -> int:
        """How many were not accepted yet."""
        return len(self._left)

    def send(self, *, within_s: float) -> None:
        """Send what was not accepted yet, again and again for so long."""
        give_up = time.monotonic() + within_s
        with httpx.Client(timeout=10, trust_env=False) as client:
            while self._left and time.monotonic() < give_up:
                self._left = [form for form in self._left if not self._accepted(client, form)]
                if self._left:
                    time.sleep(0.3)

    def _accepted(self, client: httpx.Client, form: Form) -> bool:
        try:
            answer = client.post(f"{self._stack.url}/api/leads", json=form.fields, headers=form.headers)
        except httpx.TransportError as error:
            self.answers.statuses[type(error).__name__] += 1
            return False
        self.answers.statuses[str(answer.status_code)] += 1
        if answer.status_code == 202:
            self.answers.taken[answer.json()["id"]] = form.number
        elif answer.status_code not in ANSWERS_OF_A_BUSY_NODE:
            self.answers.problems.append(f"form {form.number} was answered {answer.status_code}")
        return answer.status_code == 202


class Stacks:
    """A stack for disasters, and another one after a disaster that it did not survive."""

    def __init__(self, stack: Stack | None = None) -> None:
        """stack: one that runs already, and is never replaced."""
        self._given = stack
        self._ends = ExitStack()
        self._stack: Stack | None = None

    def well(self) -> Stack:
        """Return a stack that is well. Raises NigredoError, StackDidNotStart."""
        if self._given is not None:
            return self._given
        if self._stack is not None:
            try:
                ensure_well(self._stack)
            except (NigredoError, DependencyDown):
                self.close()
        if self._stack is None:
            self._stack = self._ends.enter_context(running_stack())
        return self._stack

    def close(self) -> None:
        """End the stack."""
        self._stack = None
        self._ends.close()
        self._ends = ExitStack()


def every_pair() -> list[tuple[Disaster, Timing]]:
    """Return each disaster in each of its timings."""
    return [(disaster, timing) for disaster in DISASTERS for timing in disaster.timings]


def plan(seed: int, many: int) -> list[tuple[Disaster, Timing]]:
    """Return the disasters of a seed: each in each timing before one comes again; those that add partitions last."""
    chosen = random.Random(f"{seed} disasters")
    pairs = every_pair()
    drawn: list[tuple[Disaster, Timing]] = []
    while len(drawn) < many:
        drawn += chosen.sample(pairs, len(pairs))
    # A topic never gets fewer partitions again, so they grow as little as possible.
    return sorted(drawn[:many], key=lambda pair: pair[0].name == "partitions-added")


def campaign(pairs: Sequence[tuple[Disaster, Timing]], deadline_s: float, tell: Tell) -> Iterator[Outcome]:
    """Undergo disasters one after another; those past the deadline are left out."""
    give_up, stacks = time.monotonic() + deadline_s, Stacks()
    try:
        for disaster, timing in pairs:
            if time.monotonic() > give_up:
                tell("the deadline is reached")
                return
            outcome = undergo(stacks.well(), disaster, timing, tell)
            tell(f"  {outcome.seconds:.0f} s, {'; '.join(outcome.findings.broken) or 'all promises kept'}")
            yield outcome
    finally:
        stacks.close()
