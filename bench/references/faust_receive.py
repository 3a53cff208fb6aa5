"""Faust's limit: an agent that receives records and does nothing. Arguments: broker, group, topics."""

from __future__ import annotations

import os
import sys
import tempfile
from typing import Any

import faust

from bench.references.progress import Progress
from nigredo.settings import Settings
from processors.engine.faust_app import broker_credentials

broker, group, *topics = sys.argv[1:]
progress = Progress()
app = faust.App(
    group,
    broker=f"kafka://{broker}",
    broker_credentials=broker_credentials(Settings.from_environment(os.environ)),
    datadir=tempfile.mkdtemp(),
    topic_allow_declare=False,
    topic_disable_leader=True,
    web_enabled=False,
    topic_partitions=4,
    consumer_auto_offset_reset="earliest",
)


@app.agent(app.topic(*topics, value_serializer="raw", key_serializer="raw"))
async def receive(stream: Any) -> None:
    """Count."""
    async for _ in stream:
        progress.count += 1


app.Worker(loglevel="error", quiet=True, redirect_stdouts=False).execute_from_commandline()
