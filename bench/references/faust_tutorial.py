"""Faust as in its tutorial: counts in a table, sends the result on. Arguments: broker, group, topic, output topic."""

from __future__ import annotations

import os
import sys
import tempfile
from typing import Any

import faust

from bench.references.progress import Progress
from nigredo.settings import Settings
from processors.engine.faust_app import broker_credentials

broker, group, topic, output = sys.argv[1:]
progress = Progress()
app = faust.App(
    group,
    broker=f"kafka://{broker}",
    broker_credentials=broker_credentials(Settings.from_environment(os.environ)),
    datadir=tempfile.mkdtemp(),
    store="memory://",
    topic_disable_leader=True,
    web_enabled=False,
    topic_partitions=4,
    consumer_auto_offset_reset="earliest",
)
verdicts = app.topic(output, value_serializer="raw", key_serializer="raw")
counts = app.Table("counts", default=int, partitions=4)


@app.agent(app.topic(topic, value_serializer="raw", key_serializer="raw"))
async def limit(stream: Any) -> None:
    """Count each network's submissions and send every record on."""
    async for key, value in stream.items():
        counts[key.decode()] += 1
        await verdicts.send(key=key, value=value)
        progress.count += 1


app.Worker(loglevel="error", quiet=True, redirect_stdouts=False).execute_from_commandline()
