#!/usr/bin/env bash
# Installs what the tests need and a fresh Debian machine lacks. Does nothing, and says nothing, where all is there.
#
# The tests start their own servers on free ports in temporary folders, so none needs to run, and none that comes with a
# package is left running. A Redis of yours in LEASEHOLD_REDIS_URL, and a PostgreSQL in LEASEHOLD_POSTGRES_URL, is used
# where a test breaks nothing; the tests that stop and kill servers need one of their own all the same.
set -euo pipefail

say() { printf 'setup: %s\n' "$*" >&2; }

fail() {
    say "$@"
    exit 1
}

PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"
# Debian keeps PostgreSQL's server where nobody's PATH goes.
for folder in /usr/lib/postgresql/*/bin; do PATH="$PATH:$folder"; done
command -v cargo >/dev/null || PATH="$PATH:${CARGO_HOME:-${HOME:-/root}/.cargo}/bin"

# A command or file that must be there, and the Debian package that brings it.
needs=(
    "cc build-essential"
    "redis-server redis-server"
    "redis-cli redis-tools"
    "protoc protobuf-compiler"
    # What comes with protoc elsewhere, Debian only recommends beside it.
    "/usr/include/google/protobuf/descriptor.proto libprotobuf-dev"
    "etcd etcd-server"
    "etcdctl etcd-client"
    "postgres postgresql"
    "pg_basebackup postgresql-client"
    "pgbouncer pgbouncer"
    "flock util-linux"
    "setpriv util-linux"
    "java default-jre-headless"
    "/usr/share/java/zookeeper.jar libzookeeper-java"
    "/usr/share/java/netty-codec.jar libnetty-java"
    "/usr/share/java/slf4j-simple.jar libslf4j-java"
    "/usr/share/java/curator-recipes.jar libcurator-recipes-java"
    "/usr/share/java/eclipse-jdt-core.jar libeclipse-jdt-core-java"
    "python3 python3"
)

missing() {
    local need
    for need in "${needs[@]}"; do
        command -v "${need%% *}" >/dev/null || [[ -e ${need%% *} ]] || printf '%s\n' "$need"
    done
    # A module that Debian packs by itself.
    python3 -c 'import ensurepip' 2>/dev/null || printf 'ensurepip python3-venv\n'
}

install_packages() {
    local -a as_root=()
    if [[ $(id -u) -ne 0 ]]; then
        command -v sudo >/dev/null || fail "must install $*: run integration/setup.sh as root, or install sudo"
        as_root=(sudo)
    fi
    command -v apt-get >/dev/null ||
        fail "there is no apt-get on this system: install what these Debian packages bring: $*"

    # Packages start their servers. A policy that forbids it (Debian Policy 9.3.3) holds while this script runs.
    local policy=/usr/sbin/policy-rc.d mine=""
    if [[ ! -e $policy ]]; then
        mine=$policy
        printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy" >/dev/null
        "${as_root[@]}" chmod +x "$policy"
    fi
    # And PostgreSQL's makes a first database cluster, unless it is told not to.
    local no_cluster=/etc/postgresql-common/createcluster.d/leasehold-tests.conf
    # Expanded now: nothing of this function is left when the script ends.
    # shellcheck disable=SC2064
    trap "${as_root[*]} rm -f $no_cluster $mine" EXIT
    "${as_root[@]}" mkdir -p "${no_cluster%/*}"
    echo 'create_main_cluster = false' | "${as_root[@]}" tee "$no_cluster" >/dev/null

    local log apt=(env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300)
    log=$(mktemp)
    say "installing $*"
    if ! { "${as_root[@]}" "${apt[@]}" update &&
        "${as_root[@]}" "${apt[@]}" install -y --no-install-recommends "$@"; } >"$log" 2>&1 </dev/null; then
        cat "$log" >&2
        rm -f "$log"
        fail "could not install $*"
    fi
    rm -f "$log"

    # Installed for the tests, it is not to start with the machine either.
    local service
    for service in pgbouncer redis-server; do
        if [[ " $* " == *" $service "* && -d /run/systemd/system ]]; then
            "${as_root[@]}" systemctl disable --now "$service" >/dev/null 2>&1 ||
                say "could not keep the $service service from starting with the machine"
        fi
    done
}

lacking=$(missing)
if [[ -n $lacking ]]; then
    mapfile -t packages < <(cut -d' ' -f2 <<<"$lacking" | sort -u)
    install_packages "${packages[@]}"
    lacking=$(missing)
    [[ -z $lacking ]] || fail "still missing after the installation: $(cut -d' ' -f1 <<<"$lacking" | paste -sd' ')"
fi

command -v cargo >/dev/null ||
    fail "cargo is not installed: install Rust with rustup, as the Rust web site says, and open a new shell"

"$(dirname "${BASH_SOURCE[0]}")/interop/setup.sh"
"$(dirname "${BASH_SOURCE[0]}")/etcd-later.sh"
