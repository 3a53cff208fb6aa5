"""Fixtures of every test: one real stack for the whole run, and tools that may be missing."""

from __future__ import annotations

import os
import shutil
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from nigredo.stack.home import Home
from nigredo.testing import Stack, StackDidNotStart, running_stack
from tests.support.containers import engine_answers, stack_on_containers

# The machine may be busy with a whole stack: how long an example takes proves nothing.
settings.register_profile("nigredo", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("nigredo")


SOON_AGAIN = {"WEBHOOK_RETRY_SCHEDULE": "1s,5s" + ",30s" * 40}
"""Where a machine is slow, a lead comes to its fourth attempt while its receiver fails; by default the next is ten
minutes later."""
STACK_FAILED = pytest.StashKey[bool]()
ON_CONTAINERS = os.environ.get("NIGREDO_TEST_STACK") == "testcontainers"


def pytest_sessionstart() -> None:
    """Say at once, in one line, when the stack that was asked for cannot be had."""
    if os.environ.get("NIGREDO_TEST_STACK", "embedded") not in ("embedded", "testcontainers"):
        pytest.exit("NIGREDO_TEST_STACK must be embedded or testcontainers", returncode=4)
    if ON_CONTAINERS and not engine_answers():
        pytest.exit("NIGREDO_TEST_STACK=testcontainers needs a container engine, and none answers here", returncode=4)
    # What tests talk to is on this machine, whatever proxy its environment names.
    for name in ("no_proxy", "NO_PROXY"):
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), "127.0.0.1,localhost,::1")))
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell without job control starts what is in its background so, and every process here would inherit it:
        # those that a test interrupts would never hear of it.
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what stops, kills or replaces the parts themselves when they are containers."""
    if ON_CONTAINERS:
        for item in items:
            if item.get_closest_marker("embedded"):
                item.add_marker(pytest.mark.skip(reason="is about the embedded parts themselves"))


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    """A real Kafka, registry, PostgreSQL and all processes, started once a run.

    `NIGREDO_TEST_HOME` names the home of a stack that runs already, for quick repeats of one test.
    """
    if home := os.environ.get("NIGREDO_TEST_HOME"):
        yield Stack(Home.open(Path(home)))
        return
    with ExitStack() as ends:
        try:
            stack = ends.enter_context(new_stack())
        except StackDidNotStart as error:
            warnings.warn(f"the stack is started a second time, the first time it said: {error}", stacklevel=1)
            stack = ends.enter_context(new_stack())
        yield stack


def new_stack() -> AbstractContextManager[Stack]:
    """Return a stack that is not started yet."""
    return stack_on_containers() if ON_CONTAINERS else running_stack(SOON_AGAIN)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    """Let a stack that did not start be one error, and not one for each test that needs it."""
    try:
        return (yield)
    except StackDidNotStart:
        if item.config.stash.get(STACK_FAILED, False):
            pytest.skip("the stack did not start: the one error of this run says why")
        item.config.stash[STACK_FAILED] = True
        raise


@pytest.fixture(scope="session")
def tool() -> Callable[[str], str]:
    """Find a program of the system; without it the test skips by name, or fails where nothing may be missing."""

    def find(name: str) -> str:
        path = shutil.which(name)
        if path is None:
            if os.environ.get("NIGREDO_SKIPS_FAIL") == "1":
                pytest.fail(f"{name} is not installed, and NIGREDO_SKIPS_FAIL is set")
            pytest.skip(f"{name} is not installed")
        return path

    return find
