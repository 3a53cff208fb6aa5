"""Conflicts between settings: combinations that cannot work, and settings that would be silently unused. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nigredo.settings import Settings

PRODUCER_NOTICES_S = 1.2
"""Longest delay, in seconds, until an expired delivery is noticed: the producer checks once a second, the product ten
times a second."""


def contradictions(settings: Settings) -> list[str]:
    """Return every conflict, one line each; empty when the settings can work together."""
    found = []
    if settings.ingest_ack_timeout_s + PRODUCER_NOTICES_S > settings.ingest_answer_within_s:
        found.append(
            "INGEST_ACK_TIMEOUT_SECONDS: must be shorter than INGEST_ANSWER_WITHIN_SECONDS by "
            f"{PRODUCER_NOTICES_S:g} seconds, so that the producer gives up before the request does"
        )
    if settings.ingest_spool_max_bytes < 2 * settings.body_max_bytes * settings.ingest_workers:
        found.append("INGEST_SPOOL_MAX_BYTES: must hold two bodies of BODY_MAX_BYTES for each of INGEST_WORKERS")
    if bool(settings.schema_registry_username) != (settings.schema_registry_password_file is not None):
        found.append("SCHEMA_REGISTRY_USERNAME and SCHEMA_REGISTRY_PASSWORD_FILE: each needs the other")
    return found + _kafka_contradictions(settings)


def _kafka_contradictions(settings: Settings) -> list[str]:
    """Return a line for each Kafka security setting that is missing, or that would be silently unused."""
    protocol = settings.kafka_security_protocol
    certificate, key = settings.kafka_ssl_certificate_file, settings.kafka_ssl_key_file
    sasl, tls = protocol.startswith("SASL_"), protocol.endswith("SSL")
    checked = [
        ("KAFKA_SASL_USERNAME", settings.kafka_sasl_username, sasl, sasl),
        ("KAFKA_SASL_PASSWORD_FILE", settings.kafka_sasl_password_file, sasl, sasl),
        ("KAFKA_SSL_CA_FILE", settings.kafka_ssl_ca_file, tls, False),
        ("KAFKA_SSL_CERTIFICATE_FILE", certificate, tls, tls and key is not None),
        ("KAFKA_SSL_KEY_FILE", key, tls, tls and certificate is not None),
    ]
    return [
        f"{name}: {'does not go with' if value else 'is needed with'} KAFKA_SECURITY_PROTOCOL={protocol}"
        for name, value, used, needed in checked
        if (value and not used) or (needed and not value)
    ]
