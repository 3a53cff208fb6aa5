"""Users of the embedded broker and their rights: the person at the machine, the product's processes, readers.

The cluster's own metadata keeps them, so they are made once a home. Until then the broker lets in `FIRST_USER` alone,
with a password that is drawn at each start and that nothing but its configuration and this module ever holds.
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
"""The broker's own connections to itself, and the person that `nigredo env` speaks for."""
ITERATIONS = 4096
"""The least that Kafka allows: guessing 192 random bits takes for ever, however quick a guess is."""
PLAIN_LOGIN = "org.apache.kafka.common.security.plain.PlainLoginModule"
CALL_TIMEOUT_S = 4.0

_ANY, _OURS = ResourcePatternType.LITERAL, ResourcePatternType.PREFIXED
_ALLOW, _DENY = AclPermissionType.ALLOW, AclPermissionType.DENY
RIGHTS = (
    (KAFKA_PROCESSES, ResourceType.TOPIC, "nigredo.", _OURS, AclOperation.ALL, _ALLOW),
    (KAFKA_PROCESSES, ResourceType.GROUP, "nigredo-", _OURS, AclOperation.ALL, _ALLOW),
    (KAFKA_READER, ResourceType.TOPIC, "nigredo.", _OURS, AclOperation.READ, _ALLOW),
    # Keys of the API and switches are no analyst's business, and a group of the product is not to be joined.
    (KAFKA_READER, ResourceType.TOPIC, "nigredo.control", _ANY, AclOperation.READ, _DENY),
    (KAFKA_READER, ResourceType.GROUP, "*", _ANY, AclOperation.READ, _ALLOW),
    (KAFKA_READER, ResourceType.GROUP, "nigredo-", _OURS, AclOperation.ALL, _DENY),
)


class KafkaUsers:
    """Users of one stack's broker, and the settings with which the broker asks for them."""

    def __init__(self, home: Home, made: Path) -> None:
        """made: a file that says for which users, rights and passwords the work is done."""
        self._home = home
        self._made = made
        self._first_password = ""

    def broker_settings(self) -> dict[str, object]:
        """Return what the broker is told at this start, and tell clients that know no SCRAM their password for it.

        SCRAM never shows a password to what holds the port; for PLAIN the passwords end with each start. librdkafka
        before 2.6.1, in kcat of Debian 12 and Ubuntu 24.04, fails at SCRAM with brokers from Kafka 4.0 on.
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

    def forget(self) -> None:
        """Have the users made again: the cluster is a new one."""
        self._made.unlink(missing_ok=True)

    def waiting_for(self) -> str | None:
        """Make the users where that is still to be done; return what is missing before that, or None."""
        if not self._first_password:
            return None  # The broker is run from outside, and has its users already.
        passwords = {user: self._home.secret(f"kafka-{user}") for user in KAFKA_USERS}
        wanted = hashlib.sha256(repr((RIGHTS, passwords)).encode()).hexdigest()
        if self._made.exists() and self._made.read_text(encoding="ascii") == wanted:
            return None
        # Another user's process could have taken the port before the broker did, and would be handed the password.
        if owners(self._home.port("kafka"), listening=True) != {os.geteuid()}:
            return "start"
        try:
            self._make(passwords)
        except (KafkaException, TimeoutError):
            return "its users"
        write_private(self._made, wanted)
        return None

    def _make(self, passwords: Mapping[str, str]) -> None:
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
