#!/usr/bin/env bash
# Installs what the tests need, then runs them:
#
#   integration/test.sh                     every test of the workspace
#   integration/test.sh fast [FILTER]       unit tests, doctests, and conformance of memory and files; installs nothing
#   integration/test.sh BACKEND [FILTER]    the tests of etcd, local, postgres, redis, redlock or zookeeper
#   integration/test.sh -p CRATE …          `cargo test` with these arguments
#
# FILTER limits a run to the tests whose names contain it. The tests of a backend are the unit tests and doctests of its
# crate, the tests in integration/tests/BACKEND, the conformance suite and the fault suite. They build no other backend.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
command -v cargo >/dev/null || PATH="$PATH:${CARGO_HOME:-${HOME:-/root}/.cargo}/bin"

# Most tests of servers wait most of the time, so that more of them than there are processors run together.
export RUST_TEST_THREADS=${RUST_TEST_THREADS:-$((3 * $(nproc)))}

# Tests of signals need the default actions, which `nohup` and background jobs change.
cargo_test() {
    env --default-signal=HUP,INT,QUIT cargo test --locked --no-fail-fast "$@"
}

everything() {
    integration/setup.sh
    # Cargo ignores `-p` together with `--workspace`.
    local argument scope=(--workspace)
    for argument in "$@"; do
        case $argument in
        --) break ;;
        -p* | --package*) scope=() ;;
        esac
    done
    cargo_test "${scope[@]}" --all-features "$@"
}

# Runs the unit tests and the test programs of some crates, then their doctests: some_crates CRATES PROGRAMS [FILTER]
some_crates() {
    local -a crates programs
    read -ra crates <<<"$1"
    read -ra programs <<<"$2"
    shift 2
    local failed=0
    cargo_test "${crates[@]/#/--package=leasehold-}" "${features[@]}" --lib "${programs[@]/#/--test=}" -- "$@" || failed=1
    cargo_test "${crates[@]/#/--package=leasehold-}" "${features[@]}" --doc -- "$@" || failed=1
    return "$failed"
}

case ${1:-} in
fast)
    features=(--features leasehold-integration/local)
    some_crates "core local redis testkit integration" conformance "${@:2}"
    ;;
redlock)
    integration/setup.sh redis
    export LEASEHOLD_BACKENDS=redlock
    features=(--features leasehold-integration/redlock)
    some_crates "redis integration" "redlock conformance faults" "${@:2}"
    ;;
etcd | local | postgres | redis | zookeeper)
    integration/setup.sh "$1"
    features=(--features "leasehold-integration/$1")
    some_crates "$1 integration" "$1 conformance faults" "${@:2}"
    ;;
"" | -*) everything "$@" ;;
*)
    printf 'test.sh: %s must be fast, a backend, or an option of cargo test\n' "$1" >&2
    exit 2
    ;;
esac
