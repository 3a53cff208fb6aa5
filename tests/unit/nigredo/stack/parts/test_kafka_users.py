"""Users of the embedded broker, and the client settings of a home."""

from __future__ import annotations

import os
from pathlib import Path

from nigredo.settings import Settings
from nigredo.stack.home import Home
from nigredo.stack.parts.kafka_users import KafkaUsers


def test_a_home_older_than_passwords_connects_to_its_broker_without_one(tmp_path: Path) -> None:
    (tmp_path / "stack.json").write_text('{"port_base": 9000}\n')
    home = Home.open(tmp_path)

    assert home.kafka_auth == "none"
    settings = Settings.from_environment(home.part_environment({"KAFKA_SECURITY_PROTOCOL": "SASL_SSL"}, "test"))
    assert settings.kafka_security_protocol == "PLAINTEXT"


def test_a_home_with_passwords_gives_each_role_its_user_and_hides_the_callers_broker(tmp_path: Path) -> None:
    home = Home.open(tmp_path / "home", 9000)
    home.create(kafka_auth="scram")
    callers = {"KAFKA_SASL_USERNAME": "me", "KAFKA_SSL_CA_FILE": "/ca", "KAFKA_SASL_MECHANISM": "PLAIN"}

    users = {
        role: Settings.from_environment(home.part_environment(callers, "test", role=role)).kafka_sasl_username
        for role in ("admin", "nigredo_app")
    }

    assert users == {"admin": "admin", "nigredo_app": "nigredo"}
    command = home.part_environment(callers, "test", role="nigredo_app", operator=True)
    assert command["KAFKA_SASL_USERNAME"] == "admin"
    exported = home.user_environment()
    assert exported["KAFKA_SASL_USERNAME"] == "admin"
    assert home.secret("kafka-admin") not in str(exported)
    assert home.secret("kafka-admin") in Path(exported["KAFKA_CLIENT_PROPERTIES"]).read_text()


def test_an_external_part_without_a_password_gets_none_at_the_next_start_either(tmp_path: Path) -> None:
    home = Home.open(tmp_path / "home", 9000)

    for _ in range(2):
        home.create(kafka_auth="none", registry_auth="none")

        assert not home.has_secret("kafka-admin")
        assert not home.has_secret("registry")
        assert home.registry_credentials is None
        assert "sasl" not in home.secret("kafka-admin.conf") + home.secret("kafka-admin.properties")


def test_no_users_are_created_in_an_external_broker(tmp_path: Path) -> None:
    home = Home.open(tmp_path / "home", 9000)
    home.create(kafka_auth="scram")

    assert KafkaUsers(home, tmp_path / "users").waiting_for() is None


def test_passwords_for_plain_are_new_at_each_start_of_the_broker(tmp_path: Path) -> None:
    home = Home.open(tmp_path / "home", 9000)
    home.create(kafka_auth="scram")
    users = KafkaUsers(home, tmp_path / "users")
    started = [(str(users.broker_settings()), home.secret("kafka-admin.conf")) for _ in range(2)]

    for settings, file in started:
        password = file.rpartition("sasl.password=")[2]
        assert f'user_admin="{password}"' in settings
        assert home.secret("kafka-admin") not in settings + file
    assert started[0] != started[1]


def test_every_file_of_a_home_is_readable_by_its_user_alone(tmp_path: Path) -> None:
    home = Home.open(tmp_path / "home", 9000)
    previous = os.umask(0)
    try:
        home.create(kafka_auth="scram")
    finally:
        os.umask(previous)

    assert home.dir.stat().st_mode & 0o777 == 0o700
    for path in home.dir.rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path
