"""Receiver URLs that no client would connect to are refused at start, so that the fault does not show at a delivery."""

from __future__ import annotations

import httpx
import pytest
import yarl

from nigredo.errors import ConfigurationError
from nigredo.settings import Settings

NAME = "FIBONACCI_WEBHOOK_URL"


@pytest.mark.parametrize(
    "url",
    [
        "http://0177.0.0.1/x",
        "http://127.1/",
        "http://0x7f.0.0.1/",
        "http://127.0.0.0x1/",
        "http://2130706433/",
        "http://256.1.1.1/",
        "http://1.2.3.4.5/",
        "http://example.com.1/",
        "http://a..example/",
        "http://-a.example/",
        "http://*.example/",
        "http://a,b/",
        "http://a%41.example/",
        "http://ex ample.com/",
        "http://a\\b/",
        "http://a.example/\x01",
        "http://a.example/\n",
        "http://a.example:0/",
        "http://a.example:99999/",
        "http://a.example:8o/",
        "http://[::1/",
        "http://[::zz]/",
        "http://xn--zz--/",
        "http://\u2603.example/",
        "http://\uff11\uff12\uff17.0.0.1/",
        "http://ex\u00adample.com/",
        "http://" + "a" * 64 + ".example/",
        "http://" + ".".join(["a" * 60] * 5) + "/",
        "ftp://a.example/",
        "http:///x",
        "a.example",
    ],
)
def test_an_address_that_cannot_be_connected_to_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        Settings.parse(NAME, url)

    assert str(refused.value).startswith(f"{NAME}: ")
    assert url not in str(refused.value)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:8082/public/nigredo-event",
        "https://crm.example.com/hooks/nigredo?x=1",
        "http://kafka_internal:8080/",
        "http://localhost/",
        "http://example.com./",
        "http://[2001:db8::1]:8080/x",
        "https://b\u00fccher.example/\u00fc",
        "https://xn--bcher-kva.example/",
        "https://3com.example/",
        "https://example.com:443/%C3%BC",
    ],
)
def test_an_address_that_the_clients_accept_is_accepted(url: str) -> None:
    assert Settings.parse(NAME, url) == url
    assert yarl.URL(str(httpx.URL(url))).host
