"""Persister over full topics, beside Faust that only receives them, and beside COPY of the same rows."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import ExitStack

from bench.lab import Lab, LabError
from bench.load import accepted_leads, produce, submissions
from bench.measure import Contender, Figures, Result, pace
from bench.run import Run
from bench.scenarios.limiter import told
from nigredo.kafka.consumer_groups import commit_offsets
from schemas.topics import DELIVERIES, LEADS, RATE_LIMITS, SUBMISSIONS

LEADS_COUNT = 12_000
TOPICS = (LEADS, RATE_LIMITS, DELIVERIES)


def run(bench: Run) -> None:
    """Measure the persister's stage: each lead with its window and its delivery attempt, stored as rows."""
    count = bench.effort.records(LEADS_COUNT)
    result = Result("persister", "Persister over full topics", "records/s", {"leads": count, "records": 3 * count})
    topics = Backlog(bench, count)
    # The windows of the leads have the input offset 0, which must exist.
    produce(bench.lab, SUBMISSIONS, submissions(bench.lab.codec(), 100, 100, salt=bench.salt()))
    contenders = [
        Contender("persister", lambda number: _persister(bench.lab, topics, result, number)),
        Contender("Faust, receiving only", lambda number: topics.by_faust(number)),
        Contender("COPY, one process", lambda number: _copy(bench, count)),
    ]
    bench.alternate(result, contenders)


class Backlog:
    """The leads, windows and attempts of one round: written once, then read by every contender."""

    def __init__(self, bench: Run, count: int) -> None:
        self._bench = bench
        self._lab = bench.lab
        self._codec = bench.lab.codec()
        self._round = -1
        self._leads = count
        self.count = 3 * count
        self._starts: dict[str, dict[int, int]] = {}

    def write(self, number: int) -> None:
        """Write the round's records; does nothing when the round is written already."""
        if number == self._round:
            return
        self._round = number
        self._starts = {topic: self._lab.end_offsets(topic) for topic in TOPICS}
        accepted = accepted_leads(self._codec, self._leads, salt=self._bench.salt())
        for topic, records in zip(TOPICS, (accepted.leads, accepted.states, accepted.attempts), strict=True):
            produce(self._lab, topic, records)

    def by_faust(self, number: int) -> Figures:
        """Receive every record with Faust and do nothing with it."""
        self.write(number)
        group = f"bench-receive-{self._bench.salt()}"
        for topic, offsets in self._starts.items():
            commit_offsets(self._lab.settings(role="admin"), group, topic, offsets)
        with self._lab.reference("faust_receive", self._lab.bootstrap_servers, group, *TOPICS) as running:
            samples = told(self._lab, running, self.count)
        return {"rate": pace(samples, self.count)}


def _persister(lab: Lab, topics: Backlog, result: Result, number: int) -> Figures:
    topics.write(number)
    with ExitStack() as stack:
        database = stack.enter_context(lab.database())

        def stored() -> int:
            row = database.execute("SELECT coalesce(sum(next_offset), 0) FROM nigredo.stream_offsets").fetchone()
            return int(row[0]) if row else 0

        before = stored()
        persister = stack.enter_context(lab.ours("persister"))
        samples = lab.watch(lambda: stored() - before, topics.count, running=persister)
        figures = {"rate": pace(samples, topics.count), "rss_mib": persister.rss_bytes() / 2**20}
    result.extra["backlog over time"] = [[round(at - samples[0][0], 3), topics.count - done] for at, done in samples]
    return figures


def _copy(bench: Run, count: int) -> Figures:
    """COPY rows of the same shape into the same tables, in a process of its own, as a loader would."""
    environment = bench.lab.home.part_environment(os.environ, "bench", role="admin")
    command = [sys.executable, "-m", "bench.references.copy_rows", str(count), str(bench.salt())]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode != 0:
        raise LabError(f"copy_rows failed: {done.stderr.strip()}")
    return {"rate": float(done.stdout)}
