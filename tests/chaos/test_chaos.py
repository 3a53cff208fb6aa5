"""Kill -9 of any process at any moment, in bounds: the long run is `make chaos`."""

from __future__ import annotations

import faulthandler
import os

import pytest

from tests.chaos.__main__ import Progressing
from tests.chaos.campaign import Campaign, run
from tests.chaos.report import command

SEED = int(os.environ.get("SEED", "20"))
FAULTS = 6
TARGETS = ("rate-limiter", "persister", "webhook-sender", "ingest")


@pytest.mark.embedded
def test_kills_of_any_process_at_any_moment_lose_nothing_and_change_no_verdict() -> None:
    # It ends by its own deadline, also where a busy machine needs minutes; pytest's would leave the stack behind.
    faulthandler.cancel_dump_traceback_later()
    campaign = Campaign(
        SEED,
        faults=FAULTS,
        submissions=2000,
        networks=100,
        targets=TARGETS,
        deadline_s=400,
    )
    # On stderr, where pytest keeps it for whoever looks at a failure.
    show = Progressing(campaign.submissions, campaign.faults)
    show.tell(command(campaign))

    outcome = run(campaign, show)

    assert outcome.findings.broken == []
    assert sum(outcome.damage.done.values()) == FAULTS
    assert outcome.findings.accepted > 500, "the load is too small for this test to mean anything"
    assert outcome.answers.statuses["429"] > 100
