"""Limiter in Quix Streams: decodes, keeps an exact sliding window in the state store, and sends the verdict on.

Runs in an environment of its own, because its pinned versions differ. Arguments: broker, group, topic, output topic,
the folder of the schemas, and a folder for its state.
"""

import io
import json
import os
import sys
from pathlib import Path

import fastavro
from quixstreams import Application
from quixstreams.kafka.configuration import ConnectionConfig

from bench.references.progress import Progress

broker, group, source, output, schemas, folder = sys.argv[1:]
SUBMISSION = fastavro.parse_schema(json.loads((Path(schemas) / "submissions.v1.avsc").read_text(encoding="utf-8")))
LEAD = fastavro.parse_schema(json.loads((Path(schemas) / "leads.v1.avsc").read_text(encoding="utf-8")))
REJECTION = fastavro.parse_schema(json.loads((Path(schemas) / "rejections.v1.avsc").read_text(encoding="utf-8")))
progress = Progress()
password = os.environ["KAFKA_SASL_PASSWORD_FILE"]
connection = ConnectionConfig(
    bootstrap_servers=broker,
    security_protocol=os.environ["KAFKA_SECURITY_PROTOCOL"],
    sasl_mechanism=os.environ["KAFKA_SASL_MECHANISM"] or None,
    sasl_username=os.environ["KAFKA_SASL_USERNAME"] or None,
    sasl_password=Path(password).read_text(encoding="utf-8").strip() if password else None,
)
app = Application(
    broker_address=connection, consumer_group=group, auto_offset_reset="earliest", state_dir=folder, loglevel="ERROR"
)
submissions = app.topic(source, value_deserializer="bytes", key_deserializer="bytes")
verdicts = app.topic(output, value_serializer="bytes", key_serializer="bytes")


def judge(value, key, timestamp, headers, state):
    """Decide one submission and return the encoded lead or rejection."""
    event = fastavro.schemaless_reader(io.BytesIO(value[5:]), SUBMISSION)
    window_ms = event["window_s"] * 1000
    counted = [at for at in state.get("accepted", []) if timestamp - at < window_ms]
    accepted = len(counted) < event["limit"]
    if accepted:
        counted.append(timestamp)
    state.set("accepted", counted)
    event |= {"submitted_at": event["taken_at"], "submission_partition": 0, "submission_offset": 0}
    out = io.BytesIO()
    if accepted:
        fastavro.schemaless_writer(out, LEAD, event | {"released": False})
    else:
        fastavro.schemaless_writer(out, REJECTION, event | {"reason": "rate_limited", "retry_at": None})
    progress.count += 1
    return out.getvalue()


frame = app.dataframe(submissions)
frame = frame.apply(judge, stateful=True, metadata=True)
frame.to_topic(verdicts)
app.run()
