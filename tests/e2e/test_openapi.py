"""The server is what `/openapi.json` says it is: every operation, whatever is sent."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.generation import GenerationMode
from schemathesis.schemas import BaseSchema

from ingest.repeats import KEY_HEADER
from nigredo.testing import Stack


@pytest.fixture(scope="module")
def interface(stack: Stack) -> BaseSchema:
    return schemathesis.openapi.from_url(f"{stack.url}/openapi.json")


described = schemathesis.pytest.from_fixture("interface")


@described.parametrize()
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_operation_is_as_it_is_described(case: Any, stack: Stack) -> None:
    number = uuid4().int
    headers = {
        "Authorization": f"Bearer {stack.home.secret('api-key')}",
        # Else the limit would be all that is seen.
        "X-Forwarded-For": f"198.{20 + number % 80}.{number // 256 % 256}.{number // 65536 % 256}",
    }
    if case.meta is not None and case.meta.generation.mode is GenerationMode.POSITIVE and KEY_HEADER in case.headers:
        # Under a key that another form was sent with, the best of forms is refused.
        case.headers[KEY_HEADER] = str(uuid4())
    case.call_and_validate(headers=headers)
