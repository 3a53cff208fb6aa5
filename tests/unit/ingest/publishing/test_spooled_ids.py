"""Schema ids of spooled submissions after the cluster was recreated."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any

import fastavro
import pytest

from ingest.publishing.spooled_ids import SpooledIds
from nigredo.avro.codec import PREFIX
from nigredo.avro.pins import Pin, Pins, files
from nigredo.settings import Settings

SUBMISSIONS, OTHER = files()["submissions"], files()["audit"][0]
RESET = {"client_network": "192.0.2.1", "requested_by": "ana", "requested_at": 0}
COUNT = {"client_network": "192.0.2.1", "count": 2, "since": 0, "until": 0}


def payload(version: int, kind: str, event: Mapping[str, Any]) -> bytes:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, json.loads(SUBMISSIONS[version - 1]), (f"nigredo.{kind}", dict(event)))
    return out.getvalue()


def under(pins: Pins) -> SpooledIds:
    ids = SpooledIds(Settings.from_environment({}))
    ids._pins = pins
    return ids


@pytest.mark.parametrize("body", [payload(1, "LimitReset", RESET), payload(3, "RefusalCount", COUNT)])
@pytest.mark.parametrize("before", [7, 8, 9])
def test_a_record_goes_out_under_an_id_that_means_its_schema(body: bytes, before: int) -> None:
    """Its old id is now pinned for another schema, still for its own, or not at all."""
    ids = under(Pins([Pin(7, "other", 1, OTHER), Pin(8, "submissions", 3, SUBMISSIONS[2])]))

    assert ids.value(PREFIX.pack(0, before) + body) == PREFIX.pack(0, 8) + body


def test_what_fits_nothing_goes_out_as_it_is() -> None:
    ids = under(Pins([Pin(8, "submissions", 3, SUBMISSIONS[2])]))

    assert ids.value(PREFIX.pack(0, 5) + b"\xff\xff") == PREFIX.pack(0, 5) + b"\xff\xff"
    assert under(Pins()).value(PREFIX.pack(0, 5) + b"x") == PREFIX.pack(0, 5) + b"x"
