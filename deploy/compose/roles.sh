#!/usr/bin/env bash
# Run once by the postgres image on an empty volume: the roles and databases that `nigredo up` makes too.
set -euo pipefail
password() { cat "/run/secrets/database-$1"; }
psql -v ON_ERROR_STOP=1 -U "$POSTGRES_USER" -d "$POSTGRES_DB" <<SQL
CREATE EXTENSION pg_stat_statements;
CREATE ROLE admin LOGIN CREATEROLE PASSWORD '$(password admin)';
GRANT pg_monitor, pg_signal_backend TO admin;
CREATE ROLE nigredo_app LOGIN PASSWORD '$(password nigredo_app)';
CREATE ROLE apicurio LOGIN PASSWORD '$(password apicurio)';
CREATE DATABASE apicurio OWNER apicurio;
ALTER DATABASE fibonacci OWNER TO admin;
REVOKE ALL ON DATABASE fibonacci FROM PUBLIC;
GRANT CONNECT ON DATABASE fibonacci TO nigredo_app;
REVOKE ALL ON DATABASE apicurio FROM PUBLIC;
SQL
