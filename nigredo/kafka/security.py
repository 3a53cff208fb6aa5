"""Kafka authentication and TLS: one set of settings, translated for librdkafka and for Python's `ssl`."""

from __future__ import annotations

import ssl
import time

from confluent_kafka import KafkaError

from nigredo.errors import ConfigurationError
from nigredo.observability.logs import get_logger
from nigredo.password_file import read_password
from nigredo.settings import Settings

NOTICE_EVERY_S = 60.0
AGAIN_WITHIN_S = 30.0
"""A rejection that is real comes back with the next connection. librdkafka reports a handshake that timed out on a busy
machine under the same code."""
REFUSED = (KafkaError._AUTHENTICATION, KafkaError._SSL)

log = get_logger()


class RefusalNotice:
    """Logs a rejected login or TLS handshake, which would otherwise look like an unavailable Kafka."""

    def __init__(self) -> None:
        self._next_at = self._last_at = float("-inf")

    def __call__(self, error: KafkaError) -> None:
        """Handle a connection error, after which librdkafka reconnects; logged when repeated, at most once a minute."""
        if error.code() not in REFUSED:
            return
        now, last_at = time.monotonic(), self._last_at
        self._last_at = now
        if now - last_at <= AGAIN_WITHIN_S and now >= self._next_at:
            self._next_at = now + NOTICE_EVERY_S
            log.error("Kafka login or TLS handshake rejected", error=error.name())


refusal_notice = RefusalNotice()


def librdkafka_security(settings: Settings) -> dict[str, str]:
    """Return the security settings of a librdkafka client. Raises ConfigurationError for an unusable file."""
    found = {"security.protocol": settings.kafka_security_protocol}
    if settings.kafka_security_protocol.startswith("SASL_"):
        found |= {
            "sasl.mechanism": settings.kafka_sasl_mechanism,
            "sasl.username": settings.kafka_sasl_username,
            "sasl.password": sasl_password(settings),
        }
    if settings.kafka_security_protocol.endswith("SSL"):
        ssl_context(settings)  # Its error names the unusable file, which librdkafka's does not.
        files = {
            "ssl.ca.location": settings.kafka_ssl_ca_file,
            "ssl.certificate.location": settings.kafka_ssl_certificate_file,
            "ssl.key.location": settings.kafka_ssl_key_file,
        }
        found |= {name: str(file) for name, file in files.items() if file is not None}
    return found


def sasl_password(settings: Settings) -> str:
    """Return the password from KAFKA_SASL_PASSWORD_FILE. Raises ConfigurationError when the file holds none."""
    return read_password(settings.kafka_sasl_password_file, "KAFKA_SASL_PASSWORD_FILE")


def ssl_context(settings: Settings) -> ssl.SSLContext:
    """Return the TLS context for brokers: trusted authorities and the client's certificate, if any.

    Raises ConfigurationError for an unusable file.
    """
    try:
        context = ssl.create_default_context(cafile=settings.kafka_ssl_ca_file)
    except OSError as error:
        raise ConfigurationError(f"KAFKA_SSL_CA_FILE: cannot be used ({_reason(error)})") from None
    if settings.kafka_ssl_certificate_file is not None:
        try:
            # An empty password, because OpenSSL would prompt on the terminal for that of an encrypted key.
            context.load_cert_chain(settings.kafka_ssl_certificate_file, settings.kafka_ssl_key_file, password="")
        except OSError as error:
            raise ConfigurationError(
                f"KAFKA_SSL_CERTIFICATE_FILE, KAFKA_SSL_KEY_FILE: cannot be used ({_reason(error)})"
            ) from None
    return context


def _reason(error: OSError) -> str:
    """Return the reason without any of the file's content."""
    if isinstance(error, ssl.SSLError):
        return "not PEM that OpenSSL accepts"
    return error.strerror or type(error).__name__
