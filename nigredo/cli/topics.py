"""`nigredo topics`: creation and correction of the topics and their schemas."""

from __future__ import annotations

import click

from nigredo.cli.output import Context, with_context
from nigredo.endpoints.endpoint import examine_endpoints
from nigredo.kafka.topic_admin import ensure_topics
from nigredo.operations.schema_ids import ensure_schemas


@click.group()
def topics() -> None:
    """The topics and their schemas."""


@topics.command()
@with_context
def ensure(context: Context) -> None:
    """Create missing topics and schemas, and correct settings that differ; safe to repeat."""
    settings = context.settings("topics", role="nigredo_app")
    changes = ensure_topics(settings) + ensure_schemas(settings, examine_endpoints(settings)[0])
    context.result({"changes": changes}, changes or "nothing to change", changed=True)
