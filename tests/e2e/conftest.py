"""What the tests of the whole stack share."""

from __future__ import annotations

import httpx
import pytest

from nigredo.testing import Stack


@pytest.fixture(scope="module", autouse=True)
def _nothing_received_yet(stack: Stack) -> None:
    """Make the receiver forget what earlier modules sent: each look at it would read all of that again."""
    httpx.delete(f"{stack.fibonacci_url}/received", timeout=10).raise_for_status()
