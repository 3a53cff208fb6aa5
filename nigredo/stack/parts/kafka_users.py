"""Users of the embedded broker and their ACLs: operators, the product's processes, analysts.

SCRAM credentials and ACLs are stored in the cluster's metadata, so they are created once per home, by `FIRST_USER`. Its
password is generated at each start of the broker, and only the broker's configuration and this module hold it.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialAlteration,
    UserScramCredentialUpsertion,
)

from nigredo.stack.home import (
    KAFKA_ADMIN,
    KAFKA_CLIENTS,
    KAFKA_PROCESSES,
    KAFKA_READER,
    KAFKA_USERS,
    SCRAM_LOGIN,
    Home,
    write_private,
)
from nigredo.stack.socket_owner import owners

FIRST_USER = "broker"
SUPER_USERS = (FIRST_USER, KAFKA_ADMIN)
"""Users without ACL checks: the broker's connections to itself, and the operator's user of `nigredo env`."""
ITERATIONS = 4096
"""SCRAM iterations: Kafka's minimum, because 192 random bits cannot be guessed however cheap a guess is."""
PLAIN_LOGIN = "org.apache.kafka.common.security.plain.PlainLoginModule"
CALL_TIMEOUT_S = 4.0

_ANY, _OURS = ResourcePatternType.LITERAL, ResourcePatternType.PREFIXED
_ALLOW, _DENY = AclPermissionType.ALLOW, AclPermissionType.DENY
RIGHTS = (
    (KAFKA_PROCESSES, ResourceType.TOPIC, "nigredo.", _OURS, AclOperation.ALL, _ALLOW),
    (KAFKA_PROCESSES, ResourceType.GROUP, "nigredo-", _OURS, AclOperation.ALL, _ALLOW),
    (KAFKA_READER, ResourceType.TOPIC, "nigredo.", _OURS, AclOperation.READ, _ALLOW),
    # Analysts may neither read API keys and switches nor join a group of the product.
    (KAFKA_READER, ResourceType.TOPIC, "nigredo.control", _ANY, AclOperation.READ, _DENY),
    (KAFKA_READER, ResourceType.GROUP, "*", _ANY, AclOperation.READ, _ALLOW),
    (KAFKA_READER, ResourceType.GROUP, "nigredo-", _OURS, AclOperation.ALL, _DENY),
)


class KafkaUsers:
    """Users of one stack's broker, and the broker settings that authenticate them."""

    def __init__(self, home: Home, marker: Path) -> None:
        """marker: file with the hash of the users, ACLs and passwords that the cluster has."""
        self._home = home
        self._marker = marker
        self._first_password = ""

    def broker_settings(self) -> dict[str, object]:
        """Return the broker's security settings for this start, and write new PLAIN passwords into the client files.

        PLAIN is for librdkafka before 2.6.1, in kcat of Debian 12 and Ubuntu 24.04, whose SCRAM fails with Kafka 4.0
        and later. SCRAM never shows a password to the owner of the port; PLAIN does, so its passwords are valid for
        one start only.
        """
        passwords = {user: secrets.token_urlsafe(24) for user in (FIRST_USER, *KAFKA_CLIENTS)}
        self._first_password = passwords[FIRST_USER]
        for user in KAFKA_CLIENTS:
            self._home.write_librdkafka_file(user, passwords[user])
        own = f'{PLAIN_LOGIN} required username="{FIRST_USER}" password="{self._first_password}"'
        known = [f'user_{user}="{password}"' for user, password in passwords.items()]
        return {
            "listener.security.protocol.map": "CLIENTS:SASL_PLAINTEXT,CONTROLLER:SASL_PLAINTEXT",
            "sasl.mechanism.inter.broker.protocol": "PLAIN",
            "sasl.mechanism.controller.protocol": "PLAIN",
            "listener.name.clients.sasl.enabled.mechanisms": "SCRAM-SHA-512,PLAIN",
            "listener.name.clients.scram-sha-512.sasl.jaas.config": f"{SCRAM_LOGIN} required;",
            "listener.name.clients.plain.sasl.jaas.config": f"{own} {' '.join(known)};",
            "listener.name.controller.sasl.enabled.mechanisms": "PLAIN",
            "listener.name.controller.plain.sasl.jaas.config": f"{own} {known[0]};",
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": ";".join(f"User:{user}" for user in SUPER_USERS),
        }

    def recreate(self) -> None:
        """Make `waiting_for` create the users again, because the cluster is new."""
        self._marker.unlink(missing_ok=True)

    def waiting_for(self) -> str | None:
        """Create the users unless the marker says that the cluster has them; return the missing condition, or None."""
        if not self._first_password:
            return None  # The broker is run outside and has its users already.
        passwords = {user: self._home.secret(f"kafka-{user}") for user in KAFKA_USERS}
        wanted = hashlib.sha256(repr((RIGHTS, passwords)).encode()).hexdigest()
        if self._marker.exists() and self._marker.read_text(encoding="ascii") == wanted:
            return None
        # Another user's process that occupied the port before the broker would receive the password.
        if owners(self._home.port("kafka"), listening=True) != {os.geteuid()}:
            return "start"
        try:
            self._create(passwords)
        except (KafkaException, TimeoutError):
            return "its users"
        write_private(self._marker, wanted)
        return None

    def _create(self, passwords: Mapping[str, str]) -> None:
        admin = AdminClient(
            {
                "bootstrap.servers": f"127.0.0.1:{self._home.port('kafka')}",
                "client.id": "nigredo-supervisor",
                "security.protocol": "SASL_PLAINTEXT",
                "sasl.mechanism": "PLAIN",
                "sasl.username": FIRST_USER,
                "sasl.password": self._first_password,
                "reconnect.backoff.max.ms": 200,
                "log_level": 0,
            }
        )
        credentials: list[UserScramCredentialAlteration] = [
            UserScramCredentialUpsertion(
                user, ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, ITERATIONS), password.encode()
            )
            for user, password in passwords.items()
        ]
        answers = [
            *admin.alter_user_scram_credentials(credentials, request_timeout=CALL_TIMEOUT_S).values(),
            *admin.create_acls(list(_bindings()), request_timeout=CALL_TIMEOUT_S).values(),
        ]
        for answer in answers:
            answer.result(CALL_TIMEOUT_S + 1)


def _bindings() -> Iterator[AclBinding]:
    for user, resource, name, pattern, operation, permission in RIGHTS:
        yield AclBinding(resource, name, pattern, f"User:{user}", "*", operation, permission)
