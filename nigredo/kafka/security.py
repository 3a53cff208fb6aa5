"""How Kafka's clients prove an identity and check the brokers': one set of settings in each client library's words."""

from __future__ import annotations

import ssl
import time

from confluent_kafka import KafkaError

from nigredo.errors import ConfigurationError
from nigredo.observability.logs import get_logger
from nigredo.password_file import read_password
from nigredo.settings import Settings

NOTICE_EVERY_S = 60.0
REFUSED = (KafkaError._AUTHENTICATION, KafkaError._SSL)

log = get_logger()


class RefusalNotice:
    """Says why a client does not get through to Kafka, where it is its proof: else that looks like Kafka being away."""

    def __init__(self) -> None:
        self._next_at = float("-inf")

    def __call__(self, error: KafkaError) -> None:
        """Take note of an error of a connection, which librdkafka tries again; logged once a minute a process."""
        if error.code() in REFUSED and time.monotonic() >= self._next_at:
            self._next_at = time.monotonic() + NOTICE_EVERY_S
            log.error(
                "Kafka refuses this client's proof; see the settings KAFKA_SASL and KAFKA_SSL", error=error.name()
            )


refusal_notice = RefusalNotice()


def librdkafka_security(settings: Settings) -> dict[str, str]:
    """Return the security settings of a librdkafka client. Raises ConfigurationError for a file that it cannot use."""
    found = {"security.protocol": settings.kafka_security_protocol}
    if settings.kafka_security_protocol.startswith("SASL_"):
        found |= {
            "sasl.mechanism": settings.kafka_sasl_mechanism,
            "sasl.username": settings.kafka_sasl_username,
            "sasl.password": sasl_password(settings),
        }
    if settings.kafka_security_protocol.endswith("SSL"):
        ssl_context(settings)  # Says which file is at fault; librdkafka only says that something is.
        files = {
            "ssl.ca.location": settings.kafka_ssl_ca_file,
            "ssl.certificate.location": settings.kafka_ssl_certificate_file,
            "ssl.key.location": settings.kafka_ssl_key_file,
        }
        found |= {name: str(file) for name, file in files.items() if file is not None}
    return found


def sasl_password(settings: Settings) -> str:
    """Return the password in the file of the settings. Raises ConfigurationError when there is none."""
    return read_password(settings.kafka_sasl_password_file, "KAFKA_SASL_PASSWORD_FILE")


def ssl_context(settings: Settings) -> ssl.SSLContext:
    """Return what a TLS connection to a broker checks and shows. Raises ConfigurationError for an unusable file."""
    try:
        context = ssl.create_default_context(cafile=settings.kafka_ssl_ca_file)
    except OSError as error:
        raise ConfigurationError(f"KAFKA_SSL_CA_FILE: cannot be used ({_reason(error)})") from None
    if settings.kafka_ssl_certificate_file is not None:
        try:
            # A key with a password would be asked for on the terminal.
            context.load_cert_chain(settings.kafka_ssl_certificate_file, settings.kafka_ssl_key_file, password="")
        except OSError as error:
            raise ConfigurationError(
                f"KAFKA_SSL_CERTIFICATE_FILE, KAFKA_SSL_KEY_FILE: cannot be used ({_reason(error)})"
            ) from None
    return context


def _reason(error: OSError) -> str:
    """Return why, in words that hold nothing of the file."""
    if isinstance(error, ssl.SSLError):
        return "not PEM that OpenSSL takes"
    return error.strerror or type(error).__name__
