"""Embedded PostgreSQL: a data folder created once, with the stack's roles and databases and no superuser login."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import stat
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import psycopg

from nigredo.errors import ConfigurationError, DependencyDown
from nigredo.stack.home import DATABASE, Home, postgres_bin
from nigredo.stack.part import READY, Part

BOOTSTRAP_TIMEOUT_S = 300
OUTPUT_MAX_BYTES = 64 * 1024
REASON = re.compile(r"(?:initdb: error|FATAL|PANIC): +(.+)")
REASON_MAX = 200
ACCESS = """\
# Every role proves its password, and the superuser of the bootstrap cannot log in at all.
host  all  admin,nigredo_app,apicurio  127.0.0.1/32  scram-sha-256
"""


def postgres_part(home: Home, environment: Mapping[str, str]) -> Part:
    """Return the database server of a stack."""
    data = home.dir / "postgres"
    prefix = unprivileged_prefix(home)
    settings = {
        "port": home.port("postgres"),
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": "",
        "shared_preload_libraries": "pg_stat_statements",
        "max_connections": 100,
        "wal_compression": "on",
        # No row values in the log: neither the failed statement nor the DETAIL that quotes the row.
        "log_min_error_statement": "panic",
        "log_error_verbosity": "terse",
        "timezone": "UTC",
    }
    options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]

    def prepare() -> None:
        if not data.exists():
            _bootstrap(home, data, prefix)

    return Part(
        "postgres",
        [str(postgres_bin() / "postgres"), "-D", str(data), *options],
        dict(environment) | {"LC_ALL": "C.UTF-8"},
        lambda: READY if database_answers(home) else "start",
        ports=(home.port("postgres"),),
        prepare=prepare,
        # Fast shutdown, because SIGTERM would wait for every client to disconnect.
        stop_signal=signal.SIGINT,
        grace_s=20.0,
        prefix=prefix,
    )


def database_answers(home: Home) -> bool:
    """Return whether the database accepts a connection; blocks for two seconds at most."""
    try:
        with psycopg.connect(home.conninfo("admin"), connect_timeout=2):
            return True
    except psycopg.OperationalError:
        return False


def _bootstrap(home: Home, data: Path, prefix: Sequence[str]) -> None:
    """Create the cluster in a temporary folder and rename it when complete, so that an interruption leaves no half."""
    unfinished = data.with_name("postgres.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(mode=0o700)
    if os.geteuid() == 0:
        account = _account()
        os.chown(unfinished, account.pw_uid, account.pw_gid)
    initdb = ["--username=bootstrap", "--encoding=UTF8", "--locale-provider=builtin", "--locale=C.UTF-8", "--no-sync"]
    _run(home, [*prefix, str(postgres_bin() / "initdb"), "-D", str(unfinished), *initdb, "--auth=reject"])
    _single_user(home, unfinished, "postgres", role_statements(home), prefix)
    _single_user(home, unfinished, DATABASE, ["CREATE EXTENSION pg_stat_statements"], prefix)
    # Overwritten in place, so that the server's user keeps owning the file, whatever this process's user and umask.
    (unfinished / "pg_hba.conf").write_text(ACCESS, encoding="utf-8")
    _run(home, [*prefix, str(postgres_bin() / "initdb"), "-D", str(unfinished), "--sync-only"])
    unfinished.rename(data)


def role_statements(home: Home) -> list[str]:
    """Return the SQL that creates the stack's roles and databases in an empty cluster; contains passwords."""
    return [
        f"CREATE ROLE admin LOGIN CREATEROLE PASSWORD '{home.secret('database-admin')}'",
        "GRANT pg_monitor, pg_signal_backend TO admin",
        f"CREATE ROLE nigredo_app LOGIN PASSWORD '{home.secret('database-nigredo_app')}'",
        f"CREATE ROLE apicurio LOGIN PASSWORD '{home.secret('database-apicurio')}'",
        f"CREATE DATABASE {DATABASE} OWNER admin",
        "CREATE DATABASE apicurio OWNER apicurio",
        f"REVOKE ALL ON DATABASE {DATABASE} FROM PUBLIC",
        f"GRANT CONNECT ON DATABASE {DATABASE} TO nigredo_app",
        "REVOKE ALL ON DATABASE apicurio FROM PUBLIC",
    ]


def _single_user(home: Home, data: Path, database: str, statements: Sequence[str], prefix: Sequence[str]) -> None:
    """Run statements in single-user mode, so that no superuser needs a login; passwords go through stdin."""
    command = [*prefix, str(postgres_bin() / "postgres"), "--single", "-j", "-D", str(data), "-c", "fsync=off"]
    command += ["-c", "exit_on_error=on", "-c", "log_min_error_statement=panic", database]
    _run(home, command, stdin="".join(f"{statement};\n\n" for statement in statements))


def _run(home: Home, command: Sequence[str], *, stdin: str = "") -> None:
    log_file = home.log_file("postgres")
    with log_file.open("ab") as log:
        began = log.tell()
        result = subprocess.run(
            command,
            input=stdin.encode(),
            stdout=log,
            stderr=log,
            timeout=BOOTSTRAP_TIMEOUT_S,
            env={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C.UTF-8"},
            check=False,
        )
    if result.returncode != 0:
        with log_file.open("rb") as output:
            output.seek(began)
            reasons = REASON.findall(output.read(OUTPUT_MAX_BYTES).decode(errors="replace"))
        reason = f": {reasons[-1][:REASON_MAX]}" if reasons else ""
        raise DependencyDown(f"PostgreSQL cannot be set up{reason}; see {log_file}")


def unprivileged_prefix(home: Home) -> list[str]:
    """Return the prefix that runs a PostgreSQL command as another user when this one is root; empty for other users.

    PostgreSQL refuses to run as root. The unprivileged user often cannot traverse the folders above the checkout or
    the home (`/root` is closed), so it then keeps one capability of root: to read and traverse folders. The data
    folder belongs to that user. Raises ConfigurationError when no prefix works.
    """
    if os.geteuid() != 0:
        return []
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise ConfigurationError("to run PostgreSQL as root needs `setpriv` (Debian: util-linux); or use another user")
    account = _account()
    identity = [f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups"]
    if _open_to_all(postgres_bin()) and _open_to_all(home.dir):
        return [setpriv, *identity, "--"]
    for right in ("dac_read_search", "dac_override"):  # Containers often have only the second.
        # initdb asks the kernel with access(2), which drops the rights of a process whose real user is not root
        # unless this bit is set.
        rights = [f"--inh-caps=+{right}", f"--ambient-caps=+{right}", "--securebits=+no_setuid_fixup"]
        prefix = [setpriv, *rights, *identity, "--"]
        if _can_run([*prefix, str(postgres_bin() / "initdb"), "--version"]):
            return prefix
    raise ConfigurationError(
        f"PostgreSQL does not run as root, and its user {account.pw_name} cannot pass the folders of {postgres_bin()} "
        f"and {home.dir}; put both below a folder that everybody may pass, such as /opt, or use another user than root"
    )


def _can_run(command: Sequence[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=BOOTSTRAP_TIMEOUT_S, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _account() -> pwd.struct_passwd:
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise ConfigurationError("to run PostgreSQL as root needs a user `postgres` or `nobody`; or use another user")


def _open_to_all(path: Path) -> bool:
    return all(folder.stat().st_mode & stat.S_IXOTH for folder in (path, *path.parents) if folder.exists())
