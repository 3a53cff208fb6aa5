#!/usr/bin/env bash
# A newcomer's machine: a pristine Debian in a folder, this repository's HEAD cloned into it, and the README's two
# commands typed there by root in root's own folder and by a normal user. `make fresh-machine` calls it.
#
#   SUITE     trixie (the default), bookworm or sid
#   ONLY      run or test: that command alone
#   ACCOUNTS  root, newcomer, or both (the default)
#   ARGS      handed to `make test`
#   MIRROR    where Debian's packages come from, if not from debootstrap's default
#
# What the caller's machine needs to reach the registries is handed on: resolver, certificates, pip's and proxies'
# settings. Ports are the caller's too: 8080 and the ten that follow it must be free. What was printed stays in
# build/fresh-machine/.
set -euo pipefail
cd "$(dirname "$0")/.."

SUITE=${SUITE:-trixie}
ONLY=${ONLY:-run test}
ACCOUNTS=${ACCOUNTS:-root newcomer}
BOOTSTRAP_DEADLINE_S=900
RUN_DEADLINE_S=900
STOP_DEADLINE_S=150
TEST_DEADLINE_S=5400
PACKAGES=python3,python3-venv,make,git,ca-certificates

refuse() {
    echo "fresh-machine: $1" >&2
    exit 2
}

make_root() {
    timeout --kill-after=10 "$BOOTSTRAP_DEADLINE_S" debootstrap --variant=minbase --include="$PACKAGES" \
        "$SUITE" "$root" ${MIRROR:+"$MIRROR"} >"$logs/$SUITE-debootstrap.log" 2>&1 \
        || refuse "debootstrap failed; see $logs/$SUITE-debootstrap.log"
    git bundle create --quiet "$root/srv/nigredo.bundle" HEAD
    chroot "$root" useradd --create-home --shell /bin/bash newcomer
    chmod 0700 "$root/root"
    local file
    for file in /etc/resolv.conf /etc/hosts /etc/pip.conf /etc/ssl/certs/ca-certificates.crt; do
        if [ -r "$file" ]; then cp --dereference --remove-destination "$file" "$root$file"; fi
    done
}

# Runs in namespaces of its own, which the kernel tears down with every process and mount in them, however this ends.
in_namespaces() {
    make_root
    mount --type proc proc "$root/proc"
    mount --rbind /dev "$root/dev"
    mount --type tmpfs shm "$root/dev/shm"
    local name value failed=0
    handed=()
    while IFS='=' read -r name value; do
        # A setting that names a file of the caller's machine says nothing here unless the file is there too.
        if [[ $name =~ ^(PIP_.*|SSL_CERT_FILE|SSL_CERT_DIR|REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE|(http|https|no|all)_proxy|(HTTP|HTTPS|NO|ALL)_PROXY)$ ]] \
            && [[ $value != /* || -e $root$value ]]; then
            handed+=("$name=$value")
        fi
    done < <(env)
    echo "Debian $SUITE, $(chroot "$root" python3 --version), commit $(git rev-parse --short HEAD)"
    for account in $ACCOUNTS; do
        as "$account" "git clone --quiet /srv/nigredo.bundle nigredo" >"$logs/$SUITE-$account-clone.log" 2>&1 \
            || refuse "git clone failed; see $logs/$SUITE-$account-clone.log"
        for what in $ONLY; do
            "make_$what" "$account" || failed=1
        done
    done
    return "$failed"
}

as() { # ACCOUNT COMMAND: as after a login, in the account's own folder
    local home
    home=$(chroot "$root" getent passwd "$1" | cut -d: -f6)
    chroot --userspec="$1:$1" "$root" env -i "${handed[@]}" HOME="$home" USER="$1" LOGNAME="$1" TERM=dumb \
        PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin bash -c "cd && $2"
}

make_run() { # ACCOUNT: `make run`, and Ctrl-C once it is ready
    local log="$logs/$SUITE-$1-run.log" began=$SECONDS pid
    set -m # a process group of its own, for the Ctrl-C, which the background of a shell without it ignores
    as "$1" "cd nigredo && exec make run" >"$log" 2>&1 &
    pid=$!
    set +m
    until grep -q '^Ctrl-C stops everything' "$log"; do
        if ! kill -0 "$pid" 2>/dev/null; then
            report "$1" "make run" "FAILED after $((SECONDS - began)) s" "$log"
            return 1
        fi
        if [ $((SECONDS - began)) -gt "$RUN_DEADLINE_S" ]; then
            kill -KILL -- "-$pid"
            report "$1" "make run" "FAILED: not ready after $RUN_DEADLINE_S s" "$log"
            return 1
        fi
        sleep 0.2
    done
    local took=$((SECONDS - began)) last sample="no sample lead DELIVERED" ended="DID NOT END" stopping=$SECONDS code=0
    last=$(grep -oE 'ready after [0-9.]+' "$log" | grep -oE '[0-9.]+' | sort -n | tail -1)
    if grep -q '^  delivered .* answered 200' "$log"; then sample="sample lead delivered"; else code=1; fi
    kill -INT -- "-$pid"
    while kill -0 "$pid" 2>/dev/null && [ $((SECONDS - stopping)) -lt "$STOP_DEADLINE_S" ]; do sleep 0.2; done
    if kill -0 "$pid" 2>/dev/null; then
        kill -KILL -- "-$pid"
        code=1
    else
        ended="ended $((SECONDS - stopping)) s after Ctrl-C"
    fi
    report "$1" "make run" "ready after $took s (stack: $last s), $sample, $ended" "$([ "$code" = 0 ] || echo "$log")"
    return "$code"
}

make_test() { # ACCOUNT
    local log="$logs/$SUITE-$1-test.log" began=$SECONDS code=0 summary
    as "$1" "cd nigredo && exec timeout --kill-after=60 $TEST_DEADLINE_S make test ARGS=${ARGS@Q}" >"$log" 2>&1 || code=1
    summary=$(grep -E '^=+ .*(passed|failed|error).* =+$' "$log" | tail -1 | tr -d '=') || true
    report "$1" "make test" "${summary:-no summary} ($((SECONDS - began)) s, exit code $code)" "$([ "$code" = 0 ] || echo "$log")"
    return "$code"
}

report() { # ACCOUNT COMMAND TEXT LOG: with the end of the log where there is one to be looked into
    printf '%-9s %-10s %s\n' "$1" "$2" "$3"
    if [ -n "$4" ]; then
        echo "          see $4; it ends:"
        tail -5 "$4" | cut -c1-300 | sed 's/^/          | /'
    fi
}

logs=$PWD/build/fresh-machine
if [ "${1:-}" = in-namespaces ]; then
    root=$2
    in_namespaces
    exit
fi
[ "$(uname -s)" = Linux ] || refuse "needs Linux"
[ "$(id -u)" = 0 ] || refuse "needs root, for a root folder of its own"
for tool in debootstrap unshare git; do
    command -v "$tool" >/dev/null || refuse "needs $tool (Debian, Ubuntu: apt install debootstrap util-linux git)"
done
for word in $ONLY; do [[ $word =~ ^(run|test)$ ]] || refuse "ONLY is run or test, not $word"; done
for word in $ACCOUNTS; do [[ $word =~ ^(root|newcomer)$ ]] || refuse "ACCOUNTS is root or newcomer, not $word"; done
[ -z "$(git status --porcelain --untracked-files=no)" ] || echo "fresh-machine: what is not committed is not tried" >&2
mkdir -p "$logs"
root=$(mktemp -d "${TMPDIR:-/tmp}/nigredo-fresh-machine.XXXXXX")
chmod 0755 "$root"
inside=
cleanup() {
    if [ -n "$inside" ]; then kill -KILL "$inside" 2>/dev/null || true; fi
    # The processes in the namespaces end a moment later.
    for _ in 1 2 3 4 5; do
        if rm -rf --one-file-system "$root" 2>/dev/null; then return; fi
        sleep 1
    done
    echo "fresh-machine: cannot remove $root" >&2
}
trap cleanup EXIT
trap 'exit 130' INT TERM HUP
export SUITE ONLY ACCOUNTS ARGS="${ARGS:-}"
set -m # in a group of its own, and waited for: a signal to this script is handled at once
unshare --mount --pid --fork --kill-child bash "$PWD/tests/fresh_machine.sh" in-namespaces "$root" &
inside=$!
set +m
code=0
wait "$inside" || code=$?
inside=
exit "$code"
