"""Settings that cannot work together, or would be left unused in silence. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nigredo.settings import Settings

PRODUCER_NOTICES_S = 1.2
"""How late the producer may notice that its time is over: it looks once a second, and we ten times."""


def contradictions(settings: Settings) -> list[str]:
    """Return what cannot work together, each as a line."""
    found = []
    if settings.ingest_ack_timeout_s + PRODUCER_NOTICES_S > settings.ingest_answer_within_s:
        found.append(
            "INGEST_ACK_TIMEOUT_SECONDS: must be shorter than INGEST_ANSWER_WITHIN_SECONDS by "
            f"{PRODUCER_NOTICES_S:g} seconds, else a request is given up before its producer gives up"
        )
    if settings.ingest_spool_max_bytes < 2 * settings.body_max_bytes * settings.ingest_workers:
        found.append("INGEST_SPOOL_MAX_BYTES: must hold two bodies of BODY_MAX_BYTES for each of INGEST_WORKERS")
    if bool(settings.schema_registry_username) != (settings.schema_registry_password_file is not None):
        found.append("SCHEMA_REGISTRY_USERNAME and SCHEMA_REGISTRY_PASSWORD_FILE: one needs the other")
    return found + _kafka_contradictions(settings)


def _kafka_contradictions(settings: Settings) -> list[str]:
    """Return which settings of Kafka's security lack another, or would be left unused in silence."""
    protocol = settings.kafka_security_protocol
    certificate, key = settings.kafka_ssl_certificate_file, settings.kafka_ssl_key_file
    sasl, tls = protocol.startswith("SASL_"), protocol.endswith("SSL")
    settled = [
        ("KAFKA_SASL_USERNAME", settings.kafka_sasl_username, sasl, sasl),
        ("KAFKA_SASL_PASSWORD_FILE", settings.kafka_sasl_password_file, sasl, sasl),
        ("KAFKA_SSL_CA_FILE", settings.kafka_ssl_ca_file, tls, False),
        ("KAFKA_SSL_CERTIFICATE_FILE", certificate, tls, tls and key is not None),
        ("KAFKA_SSL_KEY_FILE", key, tls, tls and certificate is not None),
    ]
    return [
        f"{name}: {'does not go with' if value else 'is needed with'} KAFKA_SECURITY_PROTOCOL={protocol}"
        for name, value, used, needed in settled
        if (value and not used) or (needed and not value)
    ]
