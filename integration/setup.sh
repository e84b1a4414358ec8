#!/usr/bin/env bash
# Installs the dependencies of the tests on Debian: of the given backends (etcd, local, postgres, redis,
# zookeeper), or of all tests. Does nothing and prints nothing if all of them are installed.
#
# The tests start their own servers, on free ports and in temporary folders. No server has to run, and a
# server that a package starts is stopped. Tests that inject no faults use the servers of
# LEASEHOLD_REDIS_URL and LEASEHOLD_POSTGRES_URL if they are set; all other tests start their own.
set -euo pipefail

say() { printf 'setup: %s\n' "$*" >&2; }

fail() {
    say "$@"
    exit 1
}

PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"
# Debian installs PostgreSQL's server in a folder that is not in PATH.
for folder in /usr/lib/postgresql/*/bin; do PATH="$PATH:$folder"; done
command -v cargo >/dev/null || PATH="$PATH:${CARGO_HOME:-${HOME:-/root}/.cargo}/bin"

backends=(etcd local postgres redis zookeeper)

# The backends to install for, and whether the lock clients in other languages are wanted too.
wanted=("$@")
interop=no
if [[ $# -eq 0 ]]; then
    wanted=("${backends[@]}")
    interop=yes
fi

# A required command or file, and the Debian package that contains it.
needs=("cc build-essential")
for backend in "${wanted[@]}"; do
    case $backend in
    etcd)
        needs+=(
            "protoc protobuf-compiler"
            # Part of protoc elsewhere; Debian has it in a recommended package.
            "/usr/include/google/protobuf/descriptor.proto libprotobuf-dev"
            "etcd etcd-server"
            "etcdctl etcd-client"
        )
        ;;
    local) needs+=("flock util-linux") ;;
    postgres)
        needs+=(
            "postgres postgresql"
            "pg_basebackup postgresql-client"
            "pgbouncer pgbouncer"
            "setpriv util-linux"
        )
        ;;
    redis) needs+=("redis-server redis-server" "redis-cli redis-tools") ;;
    zookeeper)
        needs+=(
            "java default-jre-headless"
            "/usr/share/java/zookeeper.jar libzookeeper-java"
            "/usr/share/java/netty-codec.jar libnetty-java"
            "/usr/share/java/slf4j-simple.jar libslf4j-java"
        )
        ;;
    *) fail "$backend must be one of ${backends[*]}" ;;
    esac
done
if [[ $interop == yes ]]; then
    needs+=(
        "/usr/share/java/curator-recipes.jar libcurator-recipes-java"
        "/usr/share/java/eclipse-jdt-core.jar libeclipse-jdt-core-java"
        "python3 python3"
    )
fi

missing() {
    local need
    for need in "${needs[@]}"; do
        command -v "${need%% *}" >/dev/null || [[ -e ${need%% *} ]] || printf '%s\n' "$need"
    done
    # A module that Debian has in a separate package.
    [[ $interop == no ]] || python3 -c 'import ensurepip' 2>/dev/null || printf 'ensurepip python3-venv\n'
}

install_packages() {
    local -a as_root=()
    if [[ $(id -u) -ne 0 ]]; then
        command -v sudo >/dev/null || fail "must install $*: run integration/setup.sh as root, or install sudo"
        as_root=(sudo)
    fi
    command -v apt-get >/dev/null ||
        fail "this system has no apt-get: install the equivalents of these Debian packages: $*"

    # Packages start their servers. A policy (Debian Policy 9.3.3) forbids this while the script runs.
    local policy=/usr/sbin/policy-rc.d mine=""
    if [[ ! -e $policy ]]; then
        mine=$policy
        printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy" >/dev/null
        "${as_root[@]}" chmod +x "$policy"
    fi
    # PostgreSQL's package creates a database cluster unless this setting prevents it.
    local no_cluster=/etc/postgresql-common/createcluster.d/leasehold-tests.conf
    # Expanded now, because the variables are local to this function.
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

    # A server installed for the tests must not start at boot either.
    local service
    for service in pgbouncer redis-server; do
        if [[ " $* " == *" $service "* && -d /run/systemd/system ]]; then
            "${as_root[@]}" systemctl disable --now "$service" >/dev/null 2>&1 ||
                say "could not disable the $service service, which will start at boot"
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

here=$(dirname "${BASH_SOURCE[0]}")
[[ $interop == no ]] || "$here/interop/setup.sh"
[[ " ${wanted[*]} " != *" etcd "* ]] || "$here/etcd-later.sh"
