"""Webhook request: the runbook's body, and a signature that the Standard Webhooks library accepts."""

from __future__ import annotations

import base64
from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from nigredo.clock import utc_now
from schemas.events import Contact, Lead
from sinks.webhook.transport.request import body_of, headers_of

LEAD = Lead(
    id=UUID("0190d5a4-7d8b-7c3e-9a51-2f6f5f0e8a11"),
    client_network="192.0.2.1",
    ip_address="192.0.2.1",
    user_agent=None,
    form_id=None,
    source=None,
    contact=Contact('João "Jo" <b>', "joao@example.com", "Olá\n€ 😀", {"budget": "12"}),
    taken_at=datetime(2026, 11, 24, 10, 30, 0, 123000, tzinfo=UTC),
    submitted_at=datetime(2026, 11, 24, 10, 30, 1, tzinfo=UTC),
    released=False,
    submission_partition=1,
    submission_offset=42,
)
SECRETS = [f"whsec_{base64.b64encode(bytes([n]) * 32).decode()}" for n in (1, 2, 3)]
KEYS = [base64.b64decode(secret.removeprefix("whsec_")) for secret in SECRETS]


def test_the_body_is_the_runbook_s_without_further_fields() -> None:
    assert body_of(LEAD).decode() == (
        '{"event_type":"lead.created","timestamp":"2026-11-24T10:30:00Z","lead":'
        '{"id":"0190d5a4-7d8b-7c3e-9a51-2f6f5f0e8a11","name":"João \\"Jo\\" <b>","email":"joao@example.com",'
        '"message":"Olá\\n€ 😀"}}'
    )


def test_the_body_does_not_depend_on_the_lead_s_offset_or_release() -> None:
    again = replace(LEAD, submission_partition=3, submission_offset=7, released=True)

    assert body_of(again) == body_of(LEAD)


@pytest.mark.parametrize("secret", SECRETS[:2])
def test_either_of_two_active_secrets_verifies(secret: str) -> None:
    headers = headers_of(LEAD, body_of(LEAD), 3, utc_now(), KEYS[:2])

    Webhook(secret).verify(body_of(LEAD), dict(headers))

    assert headers["webhook-id"] == str(LEAD.id)
    assert headers["nigredo-attempt"] == "3"


def test_another_secret_or_another_body_does_not_verify() -> None:
    headers = dict(headers_of(LEAD, body_of(LEAD), 1, utc_now(), KEYS[:2]))

    with pytest.raises(WebhookVerificationError):
        Webhook(SECRETS[2]).verify(body_of(LEAD), headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRETS[0]).verify(body_of(LEAD) + b" ", headers)
