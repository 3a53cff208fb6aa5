"""The registry's client while the registry is away."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from schemas.registry import Registry, RegistryUnavailable


def test_a_registry_that_is_away_is_asked_once_for_all_that_is_known_and_still_for_what_is_not(tmp_path: Path) -> None:
    asked: list[str] = []
    away = False

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.path)
        return httpx.Response(500) if away else httpx.Response(200, json={"id": 7})

    registry = Registry("http://registry.example", tmp_path)
    registry._client = httpx.Client(base_url="http://registry.example/", transport=httpx.MockTransport(answer))
    assert [registry.id_of(subject, {}) for subject in ("a", "b", "c")] == [7, 7, 7]
    away = True
    asked.clear()

    assert [registry.id_of(subject, {}) for subject in ("a", "b", "c")] == [7, 7, 7]
    assert asked == ["/subjects/a"]
    with pytest.raises(RegistryUnavailable):
        registry.id_of("d", {})
    assert asked == ["/subjects/a", "/subjects/d"]
