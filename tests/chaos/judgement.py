"""Whether the promises were kept: judged from the evidence alone, by the definition of the limit, as simply as it goes.

Shares no code with what it judges: neither the window's functions nor the processors nor the sink are used here.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from schemas.events import Lead, RefusalCount, Rejection, Submission
from tests.chaos.evidence import Evidence, LimitRow, Placed, sent_lead

SHOWN = 5
"""Ids in a message, so that one can be followed up."""
EXEMPT_KNOWN = 50
"""Of a network's exempt ones, the newest that are promised to be known when they come again."""
SENT = ("name", "email", "message")
Verdict = tuple[str, str, int, int]
"""`accepted` or why it was refused, the lead id, and where the submission stands."""


@dataclass(slots=True)
class Findings:
    """Findings of a run. `broken` says in words which promises were not kept, and is empty when all were."""

    submissions: int = 0
    accepted: int = 0
    lost: set[str] = field(default_factory=set)
    """Ids answered with 2xx that are not in the log, accepted leads without a row, leads never delivered."""
    stored_wrongly: int = 0
    wrong_verdicts: int = 0
    over_the_limit: int = 0
    delivered_again: int = 0
    repeated_outputs: int = 0
    """Verdicts written more than once: allowed, since every reader knows them by their id."""
    broken: list[str] = field(default_factory=list)

    def wrong(self, what: str, ids: Iterable[object]) -> int:
        """Note what is wrong with some ids, if there are any, and return how many."""
        found = sorted(map(str, ids))
        if found:
            self.broken.append(f"{len(found)} {what}: {', '.join(found[:SHOWN])}{' …' if len(found) > SHOWN else ''}")
        return len(found)

    def lose(self, what: str, ids: set[str]) -> None:
        """Note ids that are lost somewhere."""
        self.lost |= ids
        self.wrong(what, ids)


@dataclass(slots=True)
class _Window:
    now: datetime
    lasts: timedelta
    accepted: list[tuple[str, datetime]] = field(default_factory=list)
    exempt: list[tuple[str, datetime]] = field(default_factory=list)
    refused: int = 0
    row: LimitRow | None = None


def judge(evidence: Evidence, *, again_max: int) -> Findings:
    """Return what is to be said about a run. again_max: deliveries that crashes may have repeated."""
    findings = Findings(submissions=len(evidence.submissions), broken=list(evidence.answers.problems))
    verdicts, windows = verdicts_of(evidence.submissions)
    _judge_intake(evidence, findings)
    _judge_verdicts(evidence, verdicts, findings)
    _judge_limit(evidence, findings)
    accepted = {lead_id for kind, lead_id, _, _ in verdicts if kind == "accepted"}
    findings.accepted = len(accepted)
    _judge_rows(evidence, verdicts, accepted, findings)
    _judge_windows(evidence, windows, findings)
    _judge_deliveries(evidence, accepted, again_max, findings)
    if evidence.parked:
        findings.broken.append(f"{evidence.parked} records were given up on")
    findings.broken += [f"{group} ended {behind} records behind" for group, behind in evidence.lag.items() if behind]
    return findings


def judge_afterwards(evidence: Evidence) -> Findings:
    """Return the judgement of forms that were accepted after a disaster, each of a client network of its own.

    What the log held before may be gone, so only these are judged: each is in the log, accepted, stored as it was sent,
    and delivered with one body.
    """
    findings = Findings(submissions=len(evidence.answers.taken), broken=list(evidence.answers.problems))
    taken = set(evidence.answers.taken)
    _judge_intake(evidence, findings)
    accepted = {str(lead.id) for lead in evidence.leads} & taken
    findings.accepted = len(accepted)
    findings.lose("forms have no lead in the log", taken - accepted)
    findings.lose("forms have no row", taken - evidence.lead_rows.keys())
    refused = {str(rejection.id) for rejection in evidence.rejections} & taken
    verdicts = evidence.verdict_rows
    refused |= {lead_id for lead_id in taken & verdicts.keys() if verdicts[lead_id] != "accepted"}
    findings.wrong_verdicts = findings.wrong("forms were refused", refused)
    garbled = set()
    for lead_id in taken & evidence.lead_rows.keys():
        form = evidence.answers.forms[evidence.answers.taken[lead_id]]
        row, sent = evidence.lead_rows[lead_id], form.fields
        if (row.name, row.email, row.message, row.ip_address) != (*(sent[name].strip() for name in SENT), form.client):
            garbled.add(lead_id)
    findings.stored_wrongly = findings.wrong("rows do not say what was sent", garbled)
    got = [one for one in evidence.received if one.webhook_id in taken]
    delivered = Counter(one.webhook_id for one in got if 200 <= one.status < 300)
    findings.lose("forms were never delivered", taken - delivered.keys())
    findings.delivered_again = delivered.total() - len(delivered)
    bodies = defaultdict(set)
    for one in got:
        bodies[one.webhook_id].add(one.body)
    findings.wrong("leads were sent with different bodies", (one for one, sent in bodies.items() if len(sent) > 1))
    findings.wrong("webhooks hold another lead", (one for one, sent in bodies.items() if not _holds(one, sent)))
    if evidence.parked:
        findings.broken.append(f"{evidence.parked} records were given up on")
    findings.broken += [f"{group} ended {behind} records behind" for group, behind in evidence.lag.items() if behind]
    return findings


def verdicts_of(submissions: Sequence[Placed]) -> tuple[set[Verdict], dict[str, LimitRow | None]]:
    """Judge a log once more, and return the verdicts and how each network's row stands at its end."""
    verdicts: set[Verdict] = set()
    windows: dict[str, _Window] = {}
    for placed in sorted(submissions, key=lambda one: (one.partition, one.offset)):
        event = placed.event
        if isinstance(event, RefusalCount):
            if (window := windows.get(event.client_network)) is not None:
                _move(window, placed.at)
                window.refused += event.count
                _note(window, placed)
            continue
        if not isinstance(event, Submission):
            raise TypeError(f"the load brings about no {type(event).__name__}")
        lasts = timedelta(seconds=event.window_s)
        window = windows.setdefault(event.client_network, _Window(placed.at, lasts))
        _move(window, placed.at)
        lead_id = str(event.id)
        if not any(lead_id == one for one, _ in window.accepted + window.exempt[-EXEMPT_KNOWN:]):
            verdict = _verdict(window, event)
            verdicts.add((verdict, lead_id, placed.partition, placed.offset))
            if verdict == "accepted":
                (window.exempt if event.exempt else window.accepted).append((lead_id, window.now))
            window.refused += verdict not in ("accepted", "duplicate")
        _note(window, placed)
    return verdicts, {network: window.row for network, window in windows.items()}


def _verdict(window: _Window, event: Submission) -> str:
    if event.edge_verdict is not None:
        return event.edge_verdict
    return "accepted" if event.exempt or len(window.accepted) < event.limit else "rate_limited"


def _move(window: _Window, at: datetime) -> None:
    window.now = max(at, window.now)
    window.accepted = [(one, then) for one, then in window.accepted if window.now - then < window.lasts]
    window.exempt = [(one, then) for one, then in window.exempt if window.now - then < window.lasts]
    if not window.accepted:
        window.refused = 0


def _note(window: _Window, placed: Placed) -> None:
    count = len(window.accepted) + window.refused
    start = window.accepted[0][1] if window.accepted else window.now
    window.row = (count, start, placed.partition, placed.offset) if count else None


def _judge_intake(evidence: Evidence, findings: Findings) -> None:
    logged = {str(one.event.id) for one in evidence.submissions if isinstance(one.event, Submission)}
    missing = evidence.answers.taken.keys() - logged
    findings.lose("ids that were answered 202 are not in the log", missing)


def _judge_verdicts(evidence: Evidence, expected: set[Verdict], findings: Findings) -> None:
    found = Counter([_found(lead) for lead in evidence.leads] + [_found(refused) for refused in evidence.rejections])
    findings.repeated_outputs = found.total() - len(found)
    for what, verdicts in (
        ("verdicts are missing", expected - found.keys()),
        ("verdicts are not what the log gives", found.keys() - expected),
    ):
        findings.wrong_verdicts += findings.wrong(what, (f"{one[1]} {one[0]} at {one[2]}/{one[3]}" for one in verdicts))


def _found(output: Lead | Rejection) -> Verdict:
    verdict = output.reason if isinstance(output, Rejection) else "accepted"
    return verdict, str(output.id), output.submission_partition, output.submission_offset


def _judge_limit(evidence: Evidence, findings: Findings) -> None:
    """Count the accepted within each window by append time, without a notion of what the limiter does."""
    placed = {(one.partition, one.offset): one for one in evidence.submissions}
    by_network: dict[str, dict[str, datetime]] = defaultdict(dict)
    over = set()
    for lead in sorted(evidence.leads, key=lambda lead: (lead.submission_partition, lead.submission_offset)):
        one = placed[lead.submission_partition, lead.submission_offset]
        if not isinstance(one.event, Submission) or one.event.exempt:
            continue
        accepted = by_network[lead.client_network]
        accepted.setdefault(str(lead.id), one.at)
        window = timedelta(seconds=one.event.window_s)
        if sum(one.at - window < at <= one.at for at in accepted.values()) > one.event.limit:
            over.add(lead.client_network)
    findings.over_the_limit = findings.wrong("networks were let past their limit", over)


def _judge_rows(evidence: Evidence, verdicts: set[Verdict], accepted: set[str], findings: Findings) -> None:
    rows = evidence.lead_rows
    findings.lose("accepted leads have no row", accepted - rows.keys())
    wrongly = findings.wrong("rows are of no accepted lead", rows.keys() - accepted)
    submitted = {str(one.event.id): one.event for one in evidence.submissions if isinstance(one.event, Submission)}
    garbled = set()
    for lead_id in rows.keys() & submitted.keys():
        row, contact = rows[lead_id], submitted[lead_id].contact
        if (row.name, row.email, row.message) != (contact.name, contact.email, contact.message):
            garbled.add(lead_id)
    wrongly += findings.wrong("rows do not say what was sent", garbled)
    others = set()
    for lead_id in evidence.answers.taken.keys() & rows.keys():
        form = evidence.answers.forms[evidence.answers.taken[lead_id]]
        if (rows[lead_id].email, rows[lead_id].ip_address) != (form.fields["email"], form.client):
            others.add(lead_id)
    wrongly += findings.wrong("rows are of another form than the client was told", others)
    expected = defaultdict(set)
    for verdict, lead_id, _, _ in verdicts:
        expected[lead_id].add(verdict)
    told = evidence.verdict_rows
    wrongly += findings.wrong("submissions have no row", expected.keys() - told.keys())
    wrongly += findings.wrong("rows are of no submission", told.keys() - expected.keys())
    differing = set()
    for lead_id in told.keys() & expected.keys():
        # A lead beats a rejection of the same id; of several rejections any may be told.
        allowed = {"accepted"} if "accepted" in expected[lead_id] else expected[lead_id]
        if told[lead_id] not in allowed:
            differing.add(lead_id)
    wrongly += findings.wrong("rows tell another verdict than the log", differing)
    on_record = {attempt.id for attempt in evidence.attempts}
    wrongly += findings.wrong("attempts and their rows differ", on_record ^ evidence.attempt_rows)
    findings.stored_wrongly = wrongly


def _judge_windows(evidence: Evidence, expected: dict[str, LimitRow | None], findings: Findings) -> None:
    standing = {network: row for network, row in expected.items() if row is not None}
    differing = {
        network
        for network in standing.keys() | evidence.limit_rows.keys()
        if standing.get(network) != evidence.limit_rows.get(network)
    }
    findings.stored_wrongly += findings.wrong("networks' counts are not what the log gives", differing)


def _judge_deliveries(evidence: Evidence, accepted: set[str], again_max: int, findings: Findings) -> None:
    delivered = Counter(one.webhook_id for one in evidence.received if 200 <= one.status < 300)
    findings.lose("leads were never delivered", accepted - delivered.keys())
    findings.wrong("webhooks are of no accepted lead", {one.webhook_id for one in evidence.received} - accepted)
    bodies = defaultdict(set)
    for one in evidence.received:
        bodies[one.webhook_id].add(one.body)
    findings.wrong("leads were sent with different bodies", (one for one, sent in bodies.items() if len(sent) > 1))
    findings.wrong("webhooks hold another lead", (one for one, sent in bodies.items() if not _holds(one, sent)))
    recorded = {str(attempt.lead_id) for attempt in evidence.attempts if attempt.outcome == "delivered"}
    findings.wrong("deliveries are not on record", delivered.keys() - recorded)
    findings.delivered_again = delivered.total() - len(delivered)
    if findings.delivered_again > again_max:
        findings.broken.append(
            f"{findings.delivered_again} deliveries were repeated, where the crashes explain {again_max}"
        )


def _holds(lead_id: str, bodies: set[str]) -> bool:
    return all(sent_lead(body)["id"] == lead_id for body in bodies)
