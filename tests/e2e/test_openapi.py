"""The server is what `/openapi.json` says it is: every operation, whatever is sent."""

from __future__ import annotations

import base64
from typing import Any
from uuid import UUID, uuid4

import httpx
import schemathesis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from schemathesis.generation import GenerationMode

from ingest.routes.openapi import DOCUMENT
from ingest.submissions.deduplication import KEY_HEADER
from nigredo.testing import Stack

# The standard's addresses are more than those of which one may be asked to answer.
schemathesis.openapi.format(
    "email", st.from_regex(r"[a-z0-9][a-z0-9+_-]{0,20}@[a-z0-9]{1,10}\.(com|com\.br|org)", fullmatch=True)
)
CURSOR = base64.urlsafe_b64encode(f"2026-01-01T00:00:00+00:00 {UUID(int=0)}".encode()).decode()
interface = schemathesis.openapi.from_dict(DOCUMENT)


def test_the_description_is_served(stack: Stack) -> None:
    assert httpx.get(f"{stack.url}/openapi.json", timeout=10).json() == DOCUMENT


@interface.parametrize()
@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_every_operation_is_as_it_is_described(case: Any, stack: Stack) -> None:
    number = uuid4().int
    headers = {
        "Authorization": f"Bearer {stack.home.secret('api-key')}",
        # Else the limit would be all that is seen.
        "X-Forwarded-For": f"198.{20 + number % 80}.{number // 256 % 256}.{number // 65536 % 256}",
    }
    if case.meta is not None and case.meta.generation.mode is GenerationMode.POSITIVE:
        # What no description can tell: a key is for one form, and a cursor comes with a page.
        if KEY_HEADER in case.headers:
            case.headers[KEY_HEADER] = str(uuid4())
        if case.query.get("cursor"):
            case.query["cursor"] = CURSOR
    case.call_and_validate(base_url=stack.url, headers=headers)
