"""Load during the kills: forms of many networks over HTTP, some sent twice, each sent until it is answered."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import aiohttp

from nigredo.backoff import Backoff

CONNECTIONS = 32
ANSWER_TIMEOUT_S = 10.0
PATIENCE_S = 120.0
"""How long a form that has a key is sent again; longer than any part needs to come back."""
EXEMPT = "198.19.0.0/16"
"""These client networks have no limit."""
QUIET_EACH = 5
"""Forms of a network that never comes near the limit."""
KEYED, TWICE, BARE, DOUBLE_CLICK, SPAM = "keyed", "twice", "bare", "double click", "spam"


@dataclass(frozen=True, slots=True)
class Form:
    """One form of the load. `kind` says how it is sent."""

    number: int
    client: str
    kind: str

    @property
    def fields(self) -> dict[str, str]:
        """Return its fields: of no person, and different from those of every other form."""
        fields = {
            "name": f"Ana {self.number}",
            "email": f"ana{self.number}@example.com",
            "message": f"Olá, number {self.number}. " + "We would like to hear more about your offer. " * 3,
        }
        return fields | ({"_gotcha": "yes"} if self.kind == SPAM else {})

    @property
    def headers(self) -> dict[str, str]:
        """Return its headers."""
        headers = {"X-Forwarded-For": self.client}
        if self.kind in (KEYED, TWICE):
            headers["Idempotency-Key"] = f"form-{self.number}"
        if self.kind == DOUBLE_CLICK:
            headers["Sec-Fetch-Mode"] = "navigate"
        return headers


def plan_forms(seed: int, count: int, networks: int) -> list[Form]:
    """Return the load of a seed.

    Half of the networks never come near the limit, one in fifty has none, the others are far over it. One client in
    five has an IPv6 address, another one of its /64 each time.
    """
    chosen = random.Random(f"{seed} forms")
    quiet, exempt = networks // 2, max(1, networks // 50)
    busy = list(range(quiet + exempt, networks)) or [networks]
    senders = [which for which in range(quiet) for _ in range(QUIET_EACH)][: count // 2]
    senders += [quiet + chosen.randrange(exempt) for _ in range(count * 15 // 100)]
    senders += [chosen.choice(busy) for _ in range(count - len(senders))]
    chosen.shuffle(senders)
    forms = []
    for number, which in enumerate(senders):
        kind = chosen.choices([KEYED, TWICE, BARE, DOUBLE_CLICK], [60, 12, 22, 6])[0]
        if quiet <= which < quiet + exempt:
            client = f"198.19.{which // 256}.{which % 256}"
        elif which % 5:
            client = f"198.18.{which // 256}.{which % 256}"
        else:
            client = f"2001:db8:{which + 1:x}::{chosen.randrange(1, 65_536):x}"
        if which < quiet and chosen.random() < 0.05:
            # From quiet networks only: of much spam from one network no more than the number is kept.
            kind = SPAM
        forms.append(Form(number, client, kind))
    return forms


class Gate:
    """Lets forms through at a steady rate, and sees to it that some are left for the faults still to come."""

    def __init__(self, total: int, rate: float, thresholds: Sequence[int]) -> None:
        """thresholds: after how many forms each fault is due, in order."""
        self._total = total
        self._rate = rate
        self._thresholds = thresholds
        self._lock = asyncio.Lock()
        self._due = time.monotonic()
        self._moved = asyncio.Condition()
        self.sent = 0
        self.faults_done = 0

    async def fault_done(self) -> None:
        """Note that the next fault in the order is over."""
        async with self._moved:
            self.faults_done += 1
            self._moved.notify_all()

    async def reached(self, count: int) -> None:
        """Wait until so many forms were sent."""
        async with self._moved:
            await self._moved.wait_for(lambda: self.sent >= count)

    async def next(self) -> None:
        """Wait until one more form may be sent."""
        async with self._lock:
            async with self._moved:
                rate = await self._moved.wait_for(self._rate_now)
            now = time.monotonic()
            wait_s = max(0.0, self._due - now)
            self._due = now + wait_s + 1 / rate
            await asyncio.sleep(wait_s)
            async with self._moved:
                self.sent += 1
                self._moved.notify_all()

    def _rate_now(self) -> float:
        """Return the present rate: a trickle while a fault is late, nothing when what is left is kept for others."""
        left = len(self._thresholds) - self.faults_done
        if left <= 1 or self.sent < self._thresholds[self.faults_done + 1]:
            return self._rate
        kept = left * self._total // (2 * len(self._thresholds))
        return self._rate / 8 if self._total - self.sent > kept else 0.0


@dataclass(slots=True)
class Answers:
    """Answers that the clients received."""

    forms: Mapping[int, Form]
    taken: dict[str, int] = field(default_factory=dict)
    """The number of the form by each id that was answered with 2xx."""
    statuses: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    unanswered: int = 0
    """Forms without a key whose answer was lost: nobody may rely on them, and they may have been taken all the same."""


class Clients:
    """Send the forms over a bounded number of connections to all nodes of ingest."""

    def __init__(self, urls: Sequence[str], forms: Sequence[Form], gate: Gate, seed: int) -> None:
        self._urls = urls
        self._left = iter(forms)
        self._gate = gate
        self._chosen = random.Random(f"{seed} nodes")
        self.answers = Answers({form.number: form for form in forms})

    async def run(self) -> None:
        """Send everything."""
        connector = aiohttp.TCPConnector(limit=CONNECTIONS)
        timeout = aiohttp.ClientTimeout(total=ANSWER_TIMEOUT_S)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session, asyncio.TaskGroup() as group:
            for _ in range(CONNECTIONS):
                group.create_task(self._send_some(session))

    async def _send_some(self, session: aiohttp.ClientSession) -> None:
        for form in self._left:
            await self._gate.next()
            first = await self._send(session, form)
            if form.kind in (TWICE, DOUBLE_CLICK):
                again = await self._send(session, form)
                if form.kind == TWICE and first and again and first != again:
                    self.answers.problems.append(f"one key was given two ids: {first} and {again}")

    async def _send(self, session: aiohttp.ClientSession, form: Form) -> str | None:
        """Send a form until it is answered, or once if it has no key; return the id that a 2xx told."""
        answers, backoff, give_up = self.answers, Backoff(longest_s=2.0), time.monotonic() + PATIENCE_S
        while True:
            url = self._chosen.choice(self._urls)
            try:
                async with session.post(url, json=form.fields, headers=form.headers) as response:
                    answers.statuses[str(response.status)] += 1
                    if response.status == 202:
                        lead_id: str = (await response.json())["id"]
                        answers.taken[lead_id] = form.number
                        return lead_id
                    if response.status not in (500, 502, 503, 504):
                        if response.status != 429:
                            answers.problems.append(f"form {form.number} was answered {response.status}")
                        return None
            except (aiohttp.ClientError, TimeoutError, ValueError) as error:
                # ValueError: the answer broke off in its body.
                answers.statuses[type(error).__name__] += 1
            if form.kind not in (KEYED, TWICE):
                answers.unanswered += 1
                return None
            if time.monotonic() > give_up:
                answers.problems.append(f"form {form.number} was never answered within {PATIENCE_S:g} s")
                return None
            await asyncio.sleep(backoff.next_wait_s())
