"""Transport failures: the text of each, with the code that operators search for."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from nigredo.clock import utc_now
from sinks.webhook.instrumentation import reason_of
from sinks.webhook.model import AttemptResult, Outcome
from sinks.webhook.transport.client import WebhookClient

LOOPBACK = [ip_network("127.0.0.0/8"), ip_network("::1/128")]
DAY = timedelta(days=1)
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Authority:
    """A certificate authority for tests."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority")])
        certificate = self._sign(self._name, self._key, -DAY, DAY, ca=True)
        self.trust = folder / "authority.pem"
        self.trust.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def context(
        self, host: str = "localhost", since: timedelta = -DAY, until: timedelta = DAY, *, self_signed: bool = False
    ) -> ssl.SSLContext:
        """Return the server context of a receiver with such a certificate."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "receiver")])
        certificate = self._sign(name, key, since, until, host=host, by=(name, key) if self_signed else None)
        chain = self.folder / "chain.pem"
        chain.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            + certificate.public_bytes(serialization.Encoding.PEM)
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(chain)
        return context

    def _sign(
        self,
        name: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        since: timedelta,
        until: timedelta,
        *,
        host: str = "authority",
        ca: bool = False,
        by: tuple[x509.Name, ec.EllipticCurvePrivateKey] | None = None,
    ) -> x509.Certificate:
        issuer, signer = by or (self._name, self._key)
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + since)
            .not_valid_after(now + until)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .sign(signer, hashes.SHA256())
        )


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@asynccontextmanager
async def listening(serve: Serve, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    async def quietly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await serve(reader, writer)
        writer.close()

    server = await asyncio.start_server(quietly, "127.0.0.1", 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def send(url: str, trust: Path | None = None, timeout_s: float = 60.0) -> AttemptResult:
    context = ssl.create_default_context(cafile=str(trust) if trust else None)
    deliverer = WebhookClient(url, connections_max=1, allowed=LOOPBACK, ssl_context=context)
    try:
        made, _ = await deliverer.send(b"{}", {"content-type": "application/json"}, utc_now(), timeout_s=timeout_s)
        return made
    finally:
        await deliverer.close()


def run(scenario: Callable[[], Awaitable[AttemptResult]], loops: Any = uvloop.new_event_loop) -> AttemptResult:
    async def main() -> AttemptResult:
        return await scenario()

    with asyncio.Runner(loop_factory=loops) as runner:
        return runner.run(main())


async def silence(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    await reader.read()


async def ok(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"{}")
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    await writer.drain()


@pytest.mark.parametrize(
    ("how", "trusted", "says"),
    [
        ({"until": -DAY / 2}, True, "CERT_HAS_EXPIRED: the receiver's certificate has expired"),
        ({"since": DAY / 2}, True, "CERT_NOT_YET_VALID: the receiver's certificate is not valid yet"),
        ({"host": "other.example"}, True, "ERR_TLS_CERT_ALTNAME_INVALID: the receiver's certificate is for another"),
        ({"self_signed": True}, True, "DEPTH_ZERO_SELF_SIGNED_CERT: the receiver's certificate is self-signed"),
        ({}, False, "UNABLE_TO_GET_ISSUER_CERT_LOCALLY: the receiver's certificate is signed by an authority"),
        ({}, True, None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("loops", [uvloop.new_event_loop, asyncio.new_event_loop])
def test_a_rejected_certificate_is_reported_as_such(
    how: dict[str, Any], trusted: bool, says: str | None, loops: Any, authority: Authority
) -> None:
    async def scenario() -> AttemptResult:
        async with listening(ok, authority.context(**how)) as port:
            return await send(f"https://localhost:{port}/hook", authority.trust if trusted else None)

    made = run(scenario, loops)

    if says is None:
        assert made.status_code == 200
        return
    assert (made.outcome, made.status_code) == (Outcome.RETRY, None)
    assert (made.error_message or "").startswith(says)
    assert reason_of(made) == "connect"


def test_a_port_without_tls_is_told_as_such() -> None:
    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()

    async def scenario() -> AttemptResult:
        async with listening(plain) as port:
            return await send(f"https://localhost:{port}/hook")

    assert run(scenario).error_message == "EPROTO: the receiver does not speak TLS on this port"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_receiver_with_an_old_tls_version_is_reported_as_such(authority: Authority) -> None:
    context = authority.context()
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1

    # Not asyncio's server, because it drops the connection before its alert is sent.
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with contextlib.suppress(OSError), context.wrap_socket(connection, server_side=True):
                pass

        thread = threading.Thread(target=serve)
        thread.start()
        made = run(lambda: send(f"https://localhost:{server.getsockname()[1]}/hook", authority.trust))
        thread.join()

    assert (made.error_message or "").startswith("EPROTO: the receiver has no version of TLS")


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (socket.EAI_NONAME, "ENOTFOUND: the receiver's name is not known"),
        (socket.EAI_NODATA, "ENOTFOUND: the receiver's name has no address"),
        (socket.EAI_AGAIN, "EAI_AGAIN: the resolver does not answer for the receiver's name"),
        (socket.EAI_FAIL, f"ENOTFOUND: the receiver's name cannot be resolved (code {socket.EAI_FAIL})"),
    ],
)
def test_a_name_that_does_not_resolve_is_not_a_timeout(code: int, says: str) -> None:
    async def scenario() -> AttemptResult:
        async def fails(*_: object, **__: object) -> None:
            raise socket.gaierror(code, "no words of ours")

        asyncio.get_running_loop().getaddrinfo = fails  # type: ignore[assignment,method-assign]
        return await send("http://receiver.example/hook")

    made = run(scenario, asyncio.new_event_loop)

    assert made.error_message == says
    assert reason_of(made) == "connect"


@pytest.mark.parametrize("number", [errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ETIMEDOUT, errno.ECONNREFUSED])
@pytest.mark.parametrize("host", ["127.0.0.1", "both.example"])
def test_a_system_error_is_reported_by_its_code(number: int, host: str) -> None:
    """Also for a name with several addresses, whose errors the client library joins into one text."""

    async def scenario() -> AttemptResult:
        loop = asyncio.get_running_loop()

        async def both(_: str, port: int, **__: object) -> list[Any]:
            return [
                (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", port, 0, 0)),
                (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)),
            ]

        async def fails(_: socket.socket, address: tuple[str, int]) -> None:
            raise OSError(number, f"Connect call failed {address}")

        loop.getaddrinfo, loop.sock_connect = both, fails  # type: ignore[assignment,method-assign]
        return await send(f"http://{host}:9/hook")

    made = run(scenario, asyncio.new_event_loop)

    assert (made.error_message or "").startswith(f"{errno.errorcode[number]}: ")
    assert reason_of(made) == ("timeout" if number == errno.ETIMEDOUT else "connect")


def test_a_port_without_a_listener_refuses() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        made = run(lambda: send(f"http://127.0.0.1:{free.getsockname()[1]}/hook"))

    assert made.error_message == "ECONNREFUSED: Connection refused"


@pytest.mark.parametrize("tls", [False, True])
def test_a_reset_connection_is_reported_as_such(tls: bool) -> None:
    async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.transport.abort()

    async def scenario() -> AttemptResult:
        async with listening(reset) as port:
            return await send(f"{'https' if tls else 'http'}://127.0.0.1:{port}/hook")

    assert (run(scenario).error_message or "").startswith("ECONNRESET: ")


def test_a_timeout_names_the_stage_that_was_not_finished() -> None:
    async def resolving() -> AttemptResult:
        async def hangs(*_: object, **__: object) -> None:
            await asyncio.sleep(60)

        asyncio.get_running_loop().getaddrinfo = hangs  # type: ignore[assignment,method-assign]
        return await send("http://receiver.example/hook", timeout_s=1)

    async def handshaking() -> AttemptResult:
        async with listening(silence) as port:
            return await send(f"https://127.0.0.1:{port}/hook", timeout_s=1)

    async def answering() -> AttemptResult:
        async with listening(silence) as port:
            return await send(f"http://127.0.0.1:{port}/hook", timeout_s=1)

    made = [run(each, asyncio.new_event_loop) for each in (resolving, handshaking, answering)]

    assert [each.error_message for each in made] == [
        "Connection timeout: the receiver's name was not resolved within 1 s",
        "Connection timeout: no connection within 1 s",
        "Connection timeout: no whole answer within 1 s",
    ]
    assert {reason_of(each) for each in made} == {"timeout"}


def test_an_unusable_url_is_reported_as_such() -> None:
    made = run(lambda: send(f"http://{'a' * 64}.example/hook"))

    assert made.outcome == Outcome.RETRY
    assert made.error_message in ("the receiver's URL cannot be used", "ENOTFOUND: the receiver's name is not known")
