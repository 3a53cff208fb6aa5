#!/usr/bin/env bash
# Makes the secrets that docker-compose.yml reads, once; what is there stays as it is. The folder is closed to everybody
# else; the files are not, for each is mounted alone into containers whose users have other numbers.
set -euo pipefail
cd "$(dirname "$0")"
mkdir -p -m 700 secrets
umask 022
make_secret() { [ -s "secrets/$1" ] || printf '%s%s\n' "$2" "$(head -c 32 /dev/urandom | base64 -w 0)" > "secrets/$1"; }
for role in bootstrap admin nigredo_app apicurio; do make_secret "database-$role" ""; done
make_secret webhook-fibonacci whsec_
make_secret idempotency ""
for role in admin nigredo_app; do
    printf 'postgres:5432:fibonacci:%s:%s\n' "$role" "$(cat "secrets/database-$role")" > "secrets/pgpass-$role"
done
