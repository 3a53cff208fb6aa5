"""The stand-in receiver shows received webhooks only to the user of its stack, and only under an allowed Host."""

from __future__ import annotations

from unittest.mock import Mock

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from nigredo.stack.parts.fibonacci import PATH, Guard

OWN, ROOT, OTHER, PORT = 1000, 0, 1001, 40_000


def status(path: str, *, owner: int | None = OWN, host: str = "127.0.0.1:8082", peer: str = "127.0.0.1") -> int:
    transport = Mock()
    transport.get_extra_info = lambda name, default=None: (peer, PORT) if name == "peername" else default
    owners = {PORT: {owner}} if owner is not None else {}
    guard = Guard(frozenset({"fibonacci"}), OWN, lambda port: owners.get(port, set()))
    request = make_mocked_request("GET", path, headers={"Host": host}, transport=transport)
    refusal: web.Response | None = guard.refusal(request)
    return 200 if refusal is None else refusal.status


@pytest.mark.parametrize("path", ["/", "/received", "/fault"])
def test_another_user_of_the_machine_sees_no_received_webhook(path: str) -> None:
    assert status(path, owner=OTHER) == 403
    assert status(path, owner=None) == 403  # Unknown to the kernel's table.
    assert status(path, owner=OWN) == status(path, owner=ROOT) == 200


def test_any_user_may_deliver_and_ask_whether_the_stand_in_lives() -> None:
    assert status(PATH, owner=OTHER) == status("/health", owner=OTHER) == 200


def test_a_request_of_another_machine_belongs_to_no_user_here() -> None:
    assert status("/received", owner=None, peer="172.18.0.5", host="fibonacci:8082") == 200


@pytest.mark.parametrize("path", [PATH, "/", "/received", "/health"])
def test_a_request_for_a_foreign_host_is_refused_whoever_sent_it(path: str) -> None:
    assert status(path, host="evil.example:8082") == 421
