"""Database's limit: one process that COPYs the persister's rows into the persister's tables.

Arguments: number of leads, and a salt that chooses their networks. Prints records per second, where a lead with its
window and its delivery attempt is three records, as it is for the persister.
"""

from __future__ import annotations

import os
import sys
import time
from datetime import UTC, datetime
from uuid import uuid4

import psycopg

from bench.load import contact
from nigredo.settings import Settings

AGENT = "Mozilla/5.0 (X11; Linux x86_64; rv:130.0) Gecko/20100101 Firefox/130.0"
LEADS = """COPY nigredo.leads (id, name, email, message, extra, source, form_id, ip_address, user_agent, created_at,
                              lead_partition, lead_offset) FROM STDIN"""
SUBMISSIONS = """COPY nigredo.form_submissions (id, lead_id, ip_address, user_agent, source, form_id, verdict,
                                               submitted_at, submission_partition, submission_offset) FROM STDIN"""
LIMITS = """COPY nigredo.rate_limits (ip_address, submission_count, window_start, updated_at, input_partition,
                                     input_offset) FROM STDIN"""
ATTEMPTS = """COPY nigredo.webhook_logs (id, lead_id, endpoint, webhook_url, attempt, status_code, success, sent_at,
                                        duration_ms) FROM STDIN"""


def main() -> None:
    """Run with the arguments of the command line."""
    count, salt = int(sys.argv[1]), int(sys.argv[2])
    now = datetime.now(UTC)
    ids = [uuid4() for _ in range(count)]
    networks = [f"copy-{salt}-{number}" for number in range(count)]
    people = [contact(number) for number in range(count)]
    url = "http://127.0.0.1:8082/public/nigredo-event"
    with psycopg.connect(Settings.from_environment(os.environ).database_url) as database:
        began = time.perf_counter()
        cursor = database.cursor()
        with cursor.copy(LEADS) as copy:
            for number, (lead_id, person, network) in enumerate(zip(ids, people, networks, strict=True)):
                who = (lead_id, person.name, person.email, person.message, '{"company": "Example Ltda"}')
                copy.write_row((*who, "site", "contact", network, AGENT, now, number % 4, number))
        with cursor.copy(SUBMISSIONS) as copy:
            for number, (lead_id, network) in enumerate(zip(ids, networks, strict=True)):
                copy.write_row(
                    (lead_id, lead_id, network, AGENT, "site", "contact", "accepted", now, number % 4, number)
                )
        with cursor.copy(LIMITS) as copy:
            for number, network in enumerate(networks):
                copy.write_row((network, 1, now, now, number % 4, number))
        with cursor.copy(ATTEMPTS) as copy:
            for lead_id in ids:
                copy.write_row((uuid4(), lead_id, "fibonacci", url, 1, 200, True, now, 12))
        database.commit()
        print(3 * count / (time.perf_counter() - began))


if __name__ == "__main__":
    main()
