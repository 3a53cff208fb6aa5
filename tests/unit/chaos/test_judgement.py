"""The judge of `make chaos` itself: it lets a good run pass, and sees each thing that may have gone wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest

from schemas.events import Contact, DeliveryAttempt, Lead, RefusalCount, Rejection, Submission
from tests.chaos.evidence import Evidence, LeadRow, Placed, Receipt
from tests.chaos.judgement import EXEMPT_KNOWN, judge, verdicts_of
from tests.chaos.load import Answers, Form

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
NETWORK = "198.18.0.1"


def submission(number: int, **changes: object) -> Submission:
    form = Form(number, NETWORK, "bare")
    contact = Contact(form.fields["name"], form.fields["email"], form.fields["message"], {})
    whole = Submission(UUID(int=number), NETWORK, NETWORK, None, None, None, contact, NOON, 2, 3600, False, None)
    return replace(whole, **changes)  # type: ignore[arg-type]


def placed(*events: Submission | RefusalCount, minutes: int = 1) -> list[Placed]:
    return [Placed(event, 0, n, NOON + timedelta(minutes=minutes * n)) for n, event in enumerate(events)]


def kinds(*events: Submission | RefusalCount, minutes: int = 1) -> list[str]:
    verdicts, _ = verdicts_of(placed(*events, minutes=minutes))
    return [kind for kind, _, _, _ in sorted(verdicts, key=lambda verdict: verdict[3])]


def evidence() -> Evidence:
    """Return what a good run leaves: two accepted, one refused by the limiter, all stored and delivered."""
    events = [submission(n) for n in range(3)]
    log = placed(*events)
    common = [
        (e.id, NETWORK, NETWORK, None, None, None, e.contact, NOON, one.at) for e, one in zip(events, log, strict=True)
    ]
    leads = [Lead(*common[n], False, 0, n) for n in range(2)]
    attempts = [
        DeliveryAttempt(uuid4(), lead.id, "fibonacci", "http://x", 1, NOON, 1, "delivered", 200, None, 0, 0)
        for lead in leads
    ]
    contacts = [event.contact for event in events]
    return Evidence(
        Answers({n: Form(n, NETWORK, "bare") for n in range(3)}, taken={str(events[n].id): n for n in range(3)}),
        log,
        leads,
        [Rejection(*common[2], "rate_limited", NOON, 0, 2)],
        attempts,
        lead_rows={str(events[n].id): LeadRow(*_said(contacts[n]), NETWORK) for n in range(2)},
        verdict_rows={str(events[n].id): "accepted" if n < 2 else "rate_limited" for n in range(3)},
        limit_rows={NETWORK: (3, NOON, 0, 2)},
        attempt_rows={attempt.id for attempt in attempts},
        received=[Receipt(str(lead.id), 200, _body(lead)) for lead in leads],
        lag={"nigredo-persister-dev": 0},
    )


def _said(contact: Contact) -> tuple[str, str, str]:
    return contact.name, contact.email, contact.message


def _body(lead: Lead) -> str:
    return json.dumps({"lead": {"id": str(lead.id)}})


def test_a_good_run_is_good() -> None:
    findings = judge(evidence(), again_max=0)

    assert findings.broken == []
    assert (findings.submissions, findings.accepted, len(findings.lost), findings.wrong_verdicts) == (3, 2, 0, 0)


def accept_the_third(found: Evidence) -> None:
    third = found.rejections.pop()
    found.leads.append(replace(found.leads[1], id=third.id, submission_offset=2))


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda e: e.answers.taken.update({str(UUID(int=9)): 0}), "answered 202 are not in the log"),
        (lambda e: e.leads.pop(), "verdicts are missing"),
        (lambda e: e.rejections.pop(), "verdicts are missing"),
        (accept_the_third, "verdicts are not what the log gives"),
        (accept_the_third, "let past their limit"),
        (lambda e: e.lead_rows.popitem(), "accepted leads have no row"),
        (lambda e: e.lead_rows.update({"x": e.lead_rows[str(UUID(int=0))]}), "rows are of no accepted lead"),
        (lambda e: e.lead_rows.update({str(UUID(int=0)): e.lead_rows[str(UUID(int=1))]}), "do not say what was sent"),
        (lambda e: e.answers.taken.update({str(UUID(int=0)): 1}), "of another form"),
        (lambda e: e.verdict_rows.popitem(), "submissions have no row"),
        (lambda e: e.verdict_rows.update({"x": "accepted"}), "rows are of no submission"),
        (lambda e: e.verdict_rows.update({str(UUID(int=1)): "rate_limited"}), "tell another verdict"),
        (lambda e: e.attempt_rows.pop(), "attempts and their rows differ"),
        (lambda e: e.limit_rows.update({NETWORK: (2, NOON, 0, 2)}), "counts are not what the log gives"),
        (lambda e: e.limit_rows.clear(), "counts are not what the log gives"),
        (lambda e: e.received.pop(), "never delivered"),
        (lambda e: e.received.append(e.received[0]), "deliveries were repeated"),
        (
            lambda e: e.received.append(replace(e.received[0], status=500, body='{"lead":{"id":""}}')),
            "different bodies",
        ),
        (lambda e: e.received.append(replace(e.received[0], webhook_id="x")), "of no accepted lead"),
        (lambda e: e.received.append(replace(e.received[0], body=e.received[1].body)), "hold another lead"),
        (lambda e: e.attempts.pop(), "not on record"),
        (lambda e: setattr(e, "parked", 1), "given up on"),
        (lambda e: e.lag.update({"nigredo-persister-dev": 4}), "4 records behind"),
        (lambda e: e.answers.problems.append("form 7 was never answered"), "never answered"),
    ],
)
def test_what_went_wrong_is_said(harm: Callable[[Evidence], object], said: str) -> None:
    found = evidence()
    harm(found)

    assert any(said in line for line in judge(found, again_max=0).broken)


def test_a_verdict_written_again_is_no_fault() -> None:
    found = evidence()
    found.leads.append(found.leads[0])

    findings = judge(found, again_max=0)

    assert findings.broken == []
    assert findings.repeated_outputs == 1


def test_deliveries_that_crashes_explain_are_no_fault() -> None:
    found = evidence()
    found.received.append(found.received[0])

    assert judge(found, again_max=1).broken == []


def test_a_log_is_judged_by_the_limit_that_travels_with_each_submission() -> None:
    lowered = submission(2, limit=1)
    raised = submission(3, limit=3)

    assert kinds(submission(0), submission(1), lowered, raised) == ["accepted", "accepted", "rate_limited", "accepted"]


def test_what_is_out_of_the_window_counts_no_more() -> None:
    events = [submission(n) for n in range(4)]

    assert kinds(*events, minutes=30) == ["accepted"] * 4
    assert kinds(*events, minutes=29) == ["accepted", "accepted", "rate_limited", "accepted"]


def test_the_edge_is_believed_when_it_refused_and_the_exempt_count_for_nothing() -> None:
    refused = submission(0, edge_verdict="rate_limited")
    exempt = [submission(n, exempt=True) for n in (1, 2, 3)]

    assert kinds(refused, *exempt, submission(4)) == ["rate_limited", *["accepted"] * 4]


def test_an_id_that_counts_already_is_judged_once() -> None:
    assert kinds(submission(0), submission(0), submission(0)) == ["accepted"]


def test_an_exempt_id_is_judged_once_within_the_window_as_long_as_it_is_among_the_newest() -> None:
    first = submission(0, exempt=True)
    others = [submission(n, exempt=True) for n in range(1, EXEMPT_KNOWN + 1)]

    assert kinds(first, *others[:-1], first, minutes=0) == ["accepted"] * EXEMPT_KNOWN
    assert kinds(first, *others, first, minutes=0) == ["accepted"] * (EXEMPT_KNOWN + 2)
    assert kinds(first, first, minutes=59) == ["accepted"]
    assert kinds(first, first, minutes=60) == ["accepted"] * 2


def test_who_is_exempt_makes_no_row_of_the_limit_and_takes_nothing_from_it() -> None:
    exempt = [submission(n, exempt=True) for n in range(4)]

    _, alone = verdicts_of(placed(*exempt))
    _, beside = verdicts_of(placed(*exempt, submission(9)))

    assert alone == {NETWORK: None}
    assert beside == {NETWORK: (1, NOON + timedelta(minutes=4), 0, 4)}


def test_refusals_of_which_only_the_number_is_kept_are_counted() -> None:
    many = RefusalCount(NETWORK, 5, NOON, NOON)

    _, rows = verdicts_of(placed(submission(0), many))

    assert rows == {NETWORK: (6, NOON, 0, 1)}
