"""Authentication of Kafka clients by the settings; a setting without effect is refused by name."""

from __future__ import annotations

from pathlib import Path

import faust
import pytest

from nigredo.errors import ConfigurationError
from nigredo.kafka.publisher import client_config, producer_config
from nigredo.settings import Settings
from processors.engine.faust_app import make_app

PASSWORD = "s3cret \N{SNOWMAN}"


def settings_of(folder: Path, **changes: str) -> Settings:
    (folder / "password").write_text(PASSWORD + "\n", encoding="utf-8")
    given = {
        "NIGREDO_STATE_DIR": str(folder / "state"),
        "KAFKA_SECURITY_PROTOCOL": "sasl_plaintext",
        "KAFKA_SASL_USERNAME": "nigredo",
        "KAFKA_SASL_PASSWORD_FILE": str(folder / "password"),
    }
    return Settings.from_environment(given | changes)


def problems_of(**environment: str) -> tuple[str, ...]:
    with pytest.raises(ConfigurationError) as refused:
        Settings.from_environment(environment)
    return tuple(refused.value.problems)


def test_a_broker_that_asks_for_nothing_is_the_default() -> None:
    assert client_config(Settings.from_environment({}), "test")["security.protocol"] == "PLAINTEXT"


def test_consumers_and_producers_log_in_with_the_password_of_the_file(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)

    for config in (client_config(settings, "test"), producer_config(settings, "test", delivery_timeout_s=5)):
        assert config["security.protocol"] == "SASL_PLAINTEXT"
        assert config["sasl.mechanism"] == "SCRAM-SHA-512"
        assert (config["sasl.username"], config["sasl.password"]) == ("nigredo", PASSWORD)


def test_a_stream_worker_logs_in_as_every_other_client_does(tmp_path: Path) -> None:
    credentials = make_app(settings_of(tmp_path, KAFKA_SASL_MECHANISM="PLAIN"), "test").conf.broker_credentials

    assert isinstance(credentials, faust.SASLCredentials)
    assert (credentials.username, credentials.password) == ("nigredo", PASSWORD)
    assert (credentials.protocol.value, credentials.mechanism.value) == ("SASL_PLAINTEXT", "PLAIN")


def test_a_stream_worker_checks_the_brokers_certificate_where_tls_is_asked_for(tmp_path: Path) -> None:
    both = make_app(settings_of(tmp_path, KAFKA_SECURITY_PROTOCOL="SASL_SSL"), "test").conf.broker_credentials
    alone = make_app(
        Settings.from_environment({"NIGREDO_STATE_DIR": str(tmp_path), "KAFKA_SECURITY_PROTOCOL": "SSL"}), "test"
    ).conf.broker_credentials

    assert isinstance(both, faust.SASLCredentials)
    assert isinstance(alone, faust.SSLCredentials)
    assert both.protocol.value == "SASL_SSL"
    assert both.ssl_context is not None
    assert both.ssl_context.check_hostname
    assert alone.context.check_hostname


def test_a_setting_that_is_missing_or_would_do_nothing_is_refused_by_name() -> None:
    assert [problem.split(":")[0] for problem in problems_of(KAFKA_SECURITY_PROTOCOL="SASL_SSL")] == [
        "KAFKA_SASL_USERNAME",
        "KAFKA_SASL_PASSWORD_FILE",
    ]
    assert [problem.split(":")[0] for problem in problems_of(KAFKA_SASL_USERNAME="me", KAFKA_SSL_CA_FILE="/ca")] == [
        "KAFKA_SASL_USERNAME",
        "KAFKA_SSL_CA_FILE",
    ]
    (one_without_the_other,) = problems_of(KAFKA_SECURITY_PROTOCOL="SSL", KAFKA_SSL_KEY_FILE="/key")
    assert one_without_the_other == "KAFKA_SSL_CERTIFICATE_FILE: is needed with KAFKA_SECURITY_PROTOCOL=SSL"
    (unknown,) = problems_of(KAFKA_SECURITY_PROTOCOL="KERBEROS")
    assert unknown == "KAFKA_SECURITY_PROTOCOL: must be one of PLAINTEXT, SASL_PLAINTEXT, SSL, SASL_SSL"


@pytest.mark.parametrize("content", [None, b" \n", b"\xff\xfe"])
def test_a_password_file_that_holds_no_password_is_refused_without_its_content(
    tmp_path: Path, content: bytes | None
) -> None:
    settings = settings_of(tmp_path)
    (tmp_path / "password").unlink()
    if content is not None:
        (tmp_path / "password").write_bytes(content)

    with pytest.raises(ConfigurationError, match=r"^KAFKA_SASL_PASSWORD_FILE: "):
        client_config(settings, "test")


def test_certificates_that_cannot_be_used_are_refused_by_the_name_of_their_setting(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, KAFKA_SECURITY_PROTOCOL="SASL_SSL", KAFKA_SSL_CA_FILE=str(tmp_path / "password"))
    with pytest.raises(ConfigurationError, match=r"^KAFKA_SSL_CA_FILE: cannot be used \(not PEM"):
        client_config(settings, "test")

    missing = {name: str(tmp_path / "no") for name in ("KAFKA_SSL_CERTIFICATE_FILE", "KAFKA_SSL_KEY_FILE")}
    with pytest.raises(ConfigurationError, match=r"^KAFKA_SSL_CERTIFICATE_FILE, KAFKA_SSL_KEY_FILE: cannot be used"):
        client_config(settings_of(tmp_path, KAFKA_SECURITY_PROTOCOL="SASL_SSL", **missing), "test")
