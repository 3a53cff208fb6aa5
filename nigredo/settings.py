"""Settings of the product: one frozen object per process, read once from the environment.

No other module of the product reads the environment. `Settings.from_environment` reports every problem at once, so that
an operator does not need one start per mistake.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import idna

from nigredo.errors import ConfigurationError
from nigredo.networks import Network, parse_network
from nigredo.settings_conflicts import contradictions

METRIC_SOURCES_MAX = 50
METRIC_SOURCE_MAX = 64
"""Longest name of a source, in characters. Both are bounded because each source is a time series for every outcome."""


# The docstring of a parser is the column "value" of `docs/SETTINGS.md`.


class _InvalidValue(ValueError):
    """An invalid value of a setting. The text never repeats the value, because the value may be a secret."""


def _text(value: str) -> str:
    """text"""
    if not value.strip():
        raise _InvalidValue("must not be empty")
    return value.strip()


_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)", re.IGNORECASE)
_NUMBER = re.compile(r"\d+|0x[0-9a-f]*", re.IGNORECASE)


def _url(value: str) -> str:
    """an `http://` or `https://` URL"""
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise _InvalidValue("must be an http:// or https:// URL")
    if parts.username is not None or parts.password is not None:
        raise _InvalidValue("must not hold a user or a password: logs and database rows show the URL")
    if not value.isprintable() or any(sign in " \\" for sign in value):
        raise _InvalidValue("must not hold spaces, backslashes or invisible characters")
    try:
        port = parts.port
    except ValueError:
        port = 0
    if port == 0:
        raise _InvalidValue("must have a port from 1 to 65535, or none")
    _check_host(parts.hostname, bracketed="[" in parts.netloc)
    return value


def _check_host(host: str, *, bracketed: bool) -> None:
    """Refuse a host that some HTTP client would not connect to, because the fault would only show at a delivery."""
    if bracketed:
        IPv6Address(host)
        return
    if not host.isascii() or "xn--" in host:
        # Encoded as the HTTP client encodes the host, before the other checks: some characters become digits and dots.
        try:
            host = idna.encode(host.lower()).decode() if not host.isascii() else host
            idna.decode(host)
        except (idna.IDNAError, UnicodeError):
            raise _InvalidValue("must have a valid host name") from None
    labels = host.removesuffix(".").split(".")
    if _NUMBER.fullmatch(labels[-1]):
        try:
            IPv4Address(host)
        except ValueError:
            # Clients disagree about other forms: octal, hexadecimal, fewer than four numbers.
            raise _InvalidValue("must write an IPv4 address as four decimal numbers, such as 192.0.2.1") from None
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise _InvalidValue("must have a valid host name")


def _base_url(value: str) -> str:
    """an `http://` or `https://` URL"""
    return _url(value).rstrip("/")


def _flag(value: str) -> bool:
    """`true` or `false`"""
    match value.strip().lower():
        case "true" | "1" | "yes" | "on":
            return True
        case "false" | "0" | "no" | "off":
            return False
    raise _InvalidValue("must be true or false")


def _integer(least: int, most: int) -> Callable[[str], int]:
    def parse(value: str) -> int:
        try:
            number = int(value)
        except ValueError:
            number = least - 1
        if not least <= number <= most:
            raise _InvalidValue(f"must be a whole number from {least} to {most}")
        return number

    parse.__doc__ = f"{least} to {most}"
    return parse


def _seconds(least: float, most: float) -> Callable[[str], float]:
    def parse(value: str) -> float:
        number = float(value)
        if not least <= number <= most:
            raise _InvalidValue(f"must be from {least:g} to {most:g} seconds")
        return number

    parse.__doc__ = f"{least:g} to {most:g} seconds"
    return parse


def _labels(value: str) -> tuple[str, ...]:
    """names, separated by commas"""
    found = tuple(dict.fromkeys(part.strip() for part in value.split(",") if part.strip()))
    if len(found) > METRIC_SOURCES_MAX or any(len(name) > METRIC_SOURCE_MAX for name in found):
        raise _InvalidValue(f"must be at most {METRIC_SOURCES_MAX} names of at most {METRIC_SOURCE_MAX} characters")
    return found


def _number(least: float, most: float) -> Callable[[str], float]:
    def parse(value: str) -> float:
        number = float(value)
        if not least <= number <= most:
            raise _InvalidValue(f"must be from {least:g} to {most:g}")
        return number

    parse.__doc__ = f"{least:g} to {most:g}"
    return parse


_SPANS_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


def _spans(value: str) -> tuple[float, ...]:
    """time spans such as `1s,5m,2h`"""
    parts = [part.strip() for part in value.split(",")]
    found = [re.fullmatch(r"(\d{1,5}(?:\.\d{1,3})?)([smhd])", part) for part in parts]
    if not all(found):
        raise _InvalidValue("must be time spans such as 1s,5s,1m,2h")
    spans = tuple(float(each[1]) * _SPANS_S[each[2]] for each in found if each)
    if not 1 <= len(spans) <= 50 or not all(0 < span <= 7 * 86_400 for span in spans):
        raise _InvalidValue("must be from 1 to 50 time spans, each longer than 0 and at most 7d")
    return spans


def _networks(value: str) -> tuple[Network, ...]:
    """networks or addresses, separated by commas"""
    return tuple(parse_network(part) for part in value.split(",") if part.strip())


def _optional_path(value: str) -> Path | None:
    """a file"""
    return Path(value.strip()).absolute() if value.strip() else None


def _path(value: str) -> Path:
    """a path"""
    return Path(_text(value)).absolute()


def _one_of(*choices: str) -> Callable[[str], str]:
    def parse(value: str) -> str:
        known = {choice.lower(): choice for choice in choices}
        if (found := known.get(value.strip().lower())) is None:
            raise _InvalidValue(f"must be one of {', '.join(choices)}")
        return found

    parse.__doc__ = ", ".join(f"`{choice}`" for choice in choices)
    return parse


_ORIGIN = re.compile(
    r"(?P<scheme>https?)://(?:[a-z0-9_](?:[a-z0-9_.-]*[a-z0-9_])?|\[[0-9a-f:.]+\])(?::(?P<port>\d{1,5}))?"
)


def _origins(value: str) -> tuple[str, ...]:
    """origins such as `https://www.example.com`, separated by commas"""
    found = []
    for part in value.split(","):
        if not (text := part.strip().rstrip("/").lower()):
            continue
        origin = _ORIGIN.fullmatch(text)
        if origin is None or not 0 < int(origin["port"] or 1) < 65_536:
            # A text that no browser sends, such as a pattern, would seem to allow origins and match none.
            raise _InvalidValue("must be origins such as https://www.example.com, separated by commas")
        found.append(text.removesuffix(":443" if origin["scheme"] == "https" else ":80"))
    return tuple(found)


def _host_names(value: str) -> tuple[str, ...]:
    """host names without ports, separated by commas"""
    names = tuple(part.strip().lower().removesuffix(".") for part in value.split(",") if part.strip())
    if not all(re.fullmatch(r"[a-z0-9_](?:[a-z0-9_.-]*[a-z0-9_])?", name) for name in names):
        raise _InvalidValue("must be host names without ports, separated by commas")
    return names


def _word(value: str) -> str:
    """text"""
    return value.strip()


def _from(name: str, parse: Callable[[str], Any], default: str | None, *, live: bool = False) -> Any:
    """Declare a setting: its environment variable, its parser, and its default as an operator would write it.

    live: `nigredo config set` changes the setting while the product runs; the environment gives the start value.
    """
    return field(metadata={"name": name, "parse": parse, "default": default, "live": live})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Settings of one process. The variables' names follow the operations runbook; `docs/SETTINGS.md` lists them."""

    env: str = _from("NIGREDO_ENV", _text, "dev")
    """Name of the installation: part of every consumer group and of the log field `function`."""
    state_dir: Path = _from("NIGREDO_STATE_DIR", _path, ".nigredo/state")
    """Folder of a process's own files: the spool of ingest, the data directory of Faust."""
    health_host: str = _from("HEALTH_HOST", _text, "127.0.0.1")
    """Address of the health listener and of `/metrics`."""
    health_port: int = _from("HEALTH_PORT", _integer(0, 65535), "0")
    """Port of the health listener of a process without another HTTP port; 0 for no listener."""

    health_allowed_hosts: tuple[str, ...] = _from("HEALTH_ALLOWED_HOSTS", _host_names, "")
    """Host names that the health listeners and the stand-in answer to, besides `localhost` and every address."""

    kafka_bootstrap_servers: str = _from("KAFKA_BOOTSTRAP_SERVERS", _text, "127.0.0.1:9092")
    """Brokers that a client connects to first: host and port, separated by commas."""
    kafka_security_protocol: str = _from(
        "KAFKA_SECURITY_PROTOCOL", _one_of("PLAINTEXT", "SASL_PLAINTEXT", "SSL", "SASL_SSL"), "PLAINTEXT"
    )
    """Security of the connection to Kafka: login (`SASL_`), TLS (`SSL`), both or neither."""
    kafka_sasl_mechanism: str = _from(
        "KAFKA_SASL_MECHANISM", _one_of("SCRAM-SHA-512", "SCRAM-SHA-256", "PLAIN"), "SCRAM-SHA-512"
    )
    """Mechanism by which a client authenticates to Kafka."""
    kafka_sasl_username: str = _from("KAFKA_SASL_USERNAME", _word, "")
    """User of the login to Kafka, together with `KAFKA_SASL_PASSWORD_FILE`."""
    kafka_sasl_password_file: Path | None = _from("KAFKA_SASL_PASSWORD_FILE", _optional_path, "")
    """Password of `KAFKA_SASL_USERNAME`, read when a client is created, so that a new password only needs a restart."""
    kafka_ssl_ca_file: Path | None = _from("KAFKA_SSL_CA_FILE", _optional_path, "")
    """PEM file of the authorities that sign the brokers' certificates; empty for those of the operating system."""
    kafka_ssl_certificate_file: Path | None = _from("KAFKA_SSL_CERTIFICATE_FILE", _optional_path, "")
    """PEM certificate chain that a client presents to brokers that require one."""
    kafka_ssl_key_file: Path | None = _from("KAFKA_SSL_KEY_FILE", _optional_path, "")
    """Private key of `KAFKA_SSL_CERTIFICATE_FILE`: PEM, without a password."""
    embedded_kafka_auth: str = _from("EMBEDDED_KAFKA_AUTH", _one_of("scram", "none"), "scram")
    """Authentication of clients by the broker of `nigredo up`; `none` admits every user of the machine."""
    kafka_session_timeout_s: float = _from("KAFKA_SESSION_TIMEOUT_SECONDS", _seconds(6, 300), "6")
    """Time without a heartbeat after which a consumer's partitions are assigned to another member of its group."""
    topic_partitions: int = _from("TOPIC_PARTITIONS", _integer(1, 1000), "4")
    """Partitions of a new topic; existing topics keep their number."""
    topic_replication: int = _from("TOPIC_REPLICATION", _integer(1, 9), "1")
    """Replicas of a new topic; all but one must acknowledge a record."""
    schema_registry_url: str = _from("SCHEMA_REGISTRY_URL", _base_url, "http://127.0.0.1:8081/apis/ccompat/v7")
    """Address of the registry's Confluent API."""
    schema_registry_username: str = _from("SCHEMA_REGISTRY_USERNAME", _word, "")
    """User for a registry that requires HTTP Basic authentication; empty for none."""
    schema_registry_password_file: Path | None = _from("SCHEMA_REGISTRY_PASSWORD_FILE", _optional_path, "")
    """Password of `SCHEMA_REGISTRY_USERNAME`."""

    database_url: str = _from("DATABASE_URL", _text, "host=127.0.0.1 dbname=fibonacci user=nigredo_app")
    """Address of PostgreSQL: libpq keywords or a URL. The password is in the file that `passfile` names."""
    db_pool_max: int = _from("DB_POOL_MAX", _integer(1, 10), "10")
    """Maximum number of connections of one process to PostgreSQL."""
    db_pool_idle_s: float = _from("DB_POOL_IDLE_SECONDS", _seconds(1, 3600), "30")
    """Time after which an unused connection to PostgreSQL is closed."""
    db_pool_timeout_s: float = _from("DB_POOL_TIMEOUT_SECONDS", _seconds(0.1, 60), "2")
    """Longest wait of a request for a free connection to PostgreSQL."""

    dead_letters_in_a_row_max: int = _from("DEAD_LETTERS_IN_A_ROW_MAX", _integer(1, 1_000_000), "20")
    """Records of a topic that a process may park in a row; above this number the topic waits for an operator."""
    dead_letters_share_max: float = _from("DEAD_LETTERS_SHARE_MAX", _number(0.01, 1), "0.25")
    """Share of a topic's last 100 records that may be parked before the topic waits for an operator; 1 for no bound."""

    watchdog_s: float = _from("WATCHDOG_SECONDS", _seconds(30, 3600), "60")
    """Time without progress, although work is waiting, after which a limiter or persister ends itself to be restarted.

    Must exceed the timeout of a database statement plus its back-off, after which the process reports why it waits."""

    ingest_host: str = _from("INGEST_HOST", _text, "127.0.0.1")
    """Address that ingest listens on."""
    ingest_port: int = _from("INGEST_PORT", _integer(1, 65535), "8080")
    """Port of ingest: the form, the submissions endpoint and the read endpoints."""
    ingest_workers: int = _from("INGEST_WORKERS", _integer(1, 64), "1")
    """Worker processes of ingest, which share the port."""
    ingest_ack_timeout_s: float = _from("INGEST_ACK_TIMEOUT_SECONDS", _seconds(0.5, 30), "1.8")
    """Time that the producer tries to deliver a submission to Kafka before the answer is 503."""
    ingest_answer_within_s: float = _from("INGEST_ANSWER_WITHIN_SECONDS", _seconds(2, 35), "3")
    """Deadline of the answer to a submission, from the end of its body; proxies in front must wait longer."""
    ingest_header_timeout_s: float = _from("INGEST_HEADER_TIMEOUT_SECONDS", _seconds(1, 20), "15")
    """Longest time for a request's head, and for an idle connection, before the connection is closed."""
    ingest_connections_max: int = _from("INGEST_CONNECTIONS_MAX", _integer(128, 100_000), "8192")
    """Open connections of one worker; further connections wait to be accepted."""
    ingest_unready_s: float = _from("INGEST_UNREADY_SECONDS", _seconds(0, 30), "1")
    """Time that a stopping process reports that it is not ready while it still serves requests."""
    ingest_spool: bool = _from("INGEST_SPOOL", _flag, "off")
    """Whether submissions that Kafka does not accept are stored in the state folder until Kafka accepts them."""
    ingest_spool_max_bytes: int = _from("INGEST_SPOOL_MAX_BYTES", _integer(65_536, 2**40), "268435456")
    """Maximum size of the spool in bytes, all workers together."""
    ingest_in_flight_max: int = _from("INGEST_IN_FLIGHT_MAX", _integer(1, 100_000), "2000")
    """Submissions of one worker that may wait for Kafka's acknowledgement; above this number POST answers 503."""
    cors_allowed_origins: tuple[str, ...] = _from("CORS_ALLOWED_ORIGINS", _origins, "", live=True)
    """Origins whose pages may post a form by script and read the answer."""
    redirect_allowed_origins: tuple[str, ...] = _from("REDIRECT_ALLOWED_ORIGINS", _origins, "", live=True)
    """Origins that the `_next` field of a form may redirect to."""
    form_min_s: float = _from("FORM_MIN_SECONDS", _seconds(0, 60), "2", live=True)
    """Forms completed faster than this, as measured by the page's script, count as spam; 0 turns the check off."""
    idempotency_secret_file: Path = _from("IDEMPOTENCY_SECRET_FILE", _path, ".nigredo/secrets/idempotency")
    """Secret from which the lead id of an `Idempotency-Key` is derived; must be the same on every node."""
    body_max_bytes: int = _from("BODY_MAX_BYTES", _integer(1024, 900_000), "131072")
    """Longest body of a form, in bytes: twice the longest message in the alphabets that browsers encode worst."""
    trusted_proxies: tuple[Network, ...] = _from("TRUSTED_PROXIES", _networks, "")
    """Proxies whose `X-Forwarded-For` is trusted to name the client's address."""
    rate_limit_per_hour: int = _from("RATE_LIMIT_PER_HOUR", _integer(1, 200), "10", live=True)
    """Submissions accepted from one client network within the window."""
    rate_limit_window_s: int = _from("RATE_LIMIT_WINDOW_SECONDS", _integer(1, 86_400), "3600")
    """Length of the rate limit's sliding window."""
    rate_limit_exempt: tuple[Network, ...] = _from("RATE_LIMIT_EXEMPT", _networks, "", live=True)
    """Client networks exempt from the rate limit."""
    edge_networks_max: int = _from("EDGE_NETWORKS_MAX", _integer(1000, 10_000_000), "200000")
    """Client networks that an ingest worker caches for its 429 answers; above this number the oldest are evicted."""
    maintenance_mode: bool = _from("MAINTENANCE_MODE", _flag, "false", live=True)
    """Whether ingest answers every form with 503 and `MAINTENANCE_TEXT`."""
    maintenance_text: str = _from(
        "MAINTENANCE_TEXT", _text, "We are working on our systems. Please send your message again later.", live=True
    )
    """Text shown to clients during maintenance."""

    metric_sources: tuple[str, ...] = _from(
        "METRIC_SOURCES", _labels, "website,google,facebook,instagram,linkedin,newsletter,referral"
    )
    """Sources of forms with a metric label; all others count as `other`, because any client can invent a source."""

    webhook_enabled: bool = _from("WEBHOOK_ENABLED", _flag, "true", live=True)
    """Whether webhooks are sent; while `false`, leads wait in Kafka."""
    webhook_url: str = _from("FIBONACCI_WEBHOOK_URL", _url, "http://127.0.0.1:8082/public/nigredo-event")
    """URL of the receiver of the first endpoint, `fibonacci`."""
    webhook_timeout_s: float = _from("WEBHOOK_TIMEOUT_SECONDS", _seconds(0.1, 60), "5", live=True)
    """Deadline of one delivery attempt, from connecting to the end of the answer."""
    webhook_in_flight_max: int = _from("WEBHOOK_IN_FLIGHT_MAX", _integer(1, 1000), "64")
    """Maximum number of attempts of one process in flight or unrecorded; kill -9 may repeat as many."""
    webhook_rate_per_s: float = _from("WEBHOOK_RATE_PER_SECOND", _number(0, 100_000), "0")
    """Attempts per second at an endpoint, over all its processes; 0 for no limit."""
    webhook_retry_schedule: tuple[float, ...] = _from("WEBHOOK_RETRY_SCHEDULE", _spans, "1s,5s,1m,10m,30m,1h,3h,6h,13h")
    """Delay before each further attempt of a failed lead; the default spans a day."""
    webhook_allowed_networks: tuple[Network, ...] = _from("WEBHOOK_ALLOWED_NETWORKS", _networks, "")
    """Non-public networks in which receivers are allowed."""
    webhook_endpoint: str = _from("WEBHOOK_ENDPOINT", _text, "fibonacci")
    """Endpoint that this process delivers to."""
    webhook_endpoints_file: Path | None = _from("WEBHOOK_ENDPOINTS_FILE", _optional_path, "")
    """TOML file of further endpoints; `docs/WEBHOOKS.md` describes the format."""
    webhook_secret_file: Path = _from("WEBHOOK_SECRET_FILE", _path, ".nigredo/secrets/webhook-fibonacci")
    """Secrets that sign each delivery: one or two lines `whsec_…`, newest first."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """Read the settings; a missing or empty variable means its default.

        Raises ConfigurationError with every problem found, each naming its variable and never showing its value.
        """
        values: dict[str, Any] = {}
        problems: list[str] = []
        for setting in fields(cls):
            name = setting.metadata["name"]
            try:
                values[setting.name] = cls.parse(name, environment.get(name) or "")
            except ConfigurationError as error:
                problems.extend(error.problems)
        problems = problems or contradictions(cls(**values))
        if problems:
            raise ConfigurationError(*problems)
        return cls(**values)

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Return the names of all settings."""
        return tuple(setting.metadata["name"] for setting in fields(cls))

    @classmethod
    def live_names(cls) -> tuple[str, ...]:
        """Return the names of the settings that may change while the product runs."""
        return tuple(setting.metadata["name"] for setting in fields(cls) if setting.metadata["live"])

    @classmethod
    def default(cls, name: str) -> str:
        """Return a setting's default as an operator would write it."""
        return next(str(setting.metadata["default"]) for setting in fields(cls) if setting.metadata["name"] == name)

    @classmethod
    def parse(cls, name: str, text: str) -> Any:
        """Return one setting's value. Raises ConfigurationError, which names the setting and never shows the value."""
        setting = next((setting for setting in fields(cls) if setting.metadata["name"] == name), None)
        if setting is None:
            raise ConfigurationError(f"{name}: there is no such setting")
        try:
            return setting.metadata["parse"](text or setting.metadata["default"])
        except _InvalidValue as error:
            raise ConfigurationError(f"{name}: {error}") from None
        except ValueError:
            # A library's error text repeats the value, which may be a secret in the wrong variable.
            raise ConfigurationError(f"{name}: has an invalid format") from None

    def overlaid(self, values: Mapping[str, str]) -> Self:
        """Return a copy with these live settings changed; other names are ignored. Raises ConfigurationError."""
        names = {setting.metadata["name"]: setting.name for setting in fields(self) if setting.metadata["live"]}
        return replace(self, **{names[name]: self.parse(name, text) for name, text in values.items() if name in names})

    def function(self, component: str) -> str:
        """Return a component's full name, such as `nigredo-rate-limiter-dev`: log field `function`, consumer group."""
        return f"nigredo-{component}-{self.env}"
