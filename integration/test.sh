#!/usr/bin/env bash
# Installs what the tests need, then runs them:
#
#   integration/test.sh                     every test of the workspace
#   integration/test.sh fast [FILTER]       unit tests, doctests, and conformance of memory and files; installs nothing
#   integration/test.sh BACKEND [FILTER]    the tests of etcd, local, postgres, redis, redlock or zookeeper
#   integration/test.sh -p CRATE …          `cargo test` with these arguments
#
# LEASEHOLD_PROGRAMS sets how many test programs run at a time, 1 by default. The output of each is printed when it ends.
#
# FILTER limits a run to the tests whose names contain it. The tests of a backend are the unit tests and doctests of its
# crate, the tests in integration/tests/BACKEND, the conformance suite and the fault suite. They build no other backend.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
command -v cargo >/dev/null || PATH="$PATH:${CARGO_HOME:-${HOME:-/root}/.cargo}/bin"

# How many programs run at a time. Each has as many threads as there are processors, and starts servers. Where these are
# slow, drivers time out and locks expire, which is not what the tests are about.
AT_ONCE=${LEASEHOLD_PROGRAMS:-1}

queue=$(mktemp -d)
# The programs that run and the times of their starts, by the ids of their processes.
declare -A running=() begun=()
failed=()

# Ends what still runs, also after a signal. Servers and workers end with the program that has started them.
finish() {
    [[ ${#running[@]} -eq 0 ]] || kill "${!running[@]}" 2>/dev/null || true
    rm -rf "$queue"
}
trap finish EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

# Tests of signals need the default actions, which `nohup` and background jobs change.
cargo_test() {
    env --default-signal=HUP,INT,QUIT cargo test --locked --no-fail-fast "$@"
}

# Builds what `cargo test` with these arguments would run, and puts each test program into the queue.
enqueue() {
    local host
    host=$(rustc -vV | sed -n 's/^host: //p')
    LEASEHOLD_QUEUE=$queue cargo_test --config "target.$host.runner = ['$PWD/integration/enqueue.sh']" "$@"
}

# Puts the doctests of these arguments into the queue, as its last program.
enqueue_doctests() {
    {
        printf 'exec cargo test --locked --no-fail-fast --doc'
        printf ' %q' "$@"
        echo
    } >"$queue/999 doctests.job"
}

# Waits until a program ends, and prints its output.
report_one() {
    local pid status=0
    wait -n -p pid "${!running[@]}" || status=$?
    local job=${running[$pid]}
    local name=${job##*/}
    name=${name#* }
    unset "running[$pid]"
    printf '\n--- %s (%d s)\n' "${name%.job}" $((SECONDS - begun[$pid]))
    cat "$job.output"
    [[ $status -eq 0 ]] || failed+=("${name%.job} (status $status)")
}

# Runs all that is in the queue, the last first: those are the doctests, which compute, and the backends' programs,
# which take longest.
run_queue() {
    local job jobs=()
    for job in "$queue"/*.job; do
        [[ ! -e $job ]] || jobs=("$job" "${jobs[@]}")
    done
    # None after `--no-run`.
    [[ ${#jobs[@]} -gt 0 ]] || return 0
    # The output of a single one is visible while it runs.
    if [[ ${#jobs[@]} -eq 1 ]]; then
        env --default-signal=HUP,INT,QUIT bash "${jobs[0]}"
        return
    fi
    for job in "${jobs[@]}"; do
        [[ ${#running[@]} -lt $AT_ONCE ]] || report_one
        env --default-signal=HUP,INT,QUIT bash "$job" >"$job.output" 2>&1 </dev/null &
        running[$!]=$job
        begun[$!]=$SECONDS
    done
    while [[ ${#running[@]} -gt 0 ]]; do report_one; done
    if [[ ${#failed[@]} -gt 0 ]]; then
        printf '\n%d of %d programs failed:\n' "${#failed[@]}" "${#jobs[@]}"
        printf '    %s\n' "${failed[@]}"
        return 1
    fi
    printf '\n%d programs passed\n' "${#jobs[@]}"
}

# Runs `cargo test` with these arguments for all crates, unless they name some.
everything() {
    integration/setup.sh
    # Cargo ignores `-p` together with `--workspace`, and runs doctests too unless a kind of target is named.
    local argument scope=(--workspace) kinds=both
    for argument in "$@"; do
        case $argument in
        --) break ;;
        -p* | --package*) scope=() ;;
        --doc) kinds=doctests ;;
        --lib | --bin* | --test* | --example* | --bench* | --all-targets | --no-run) kinds=programs ;;
        esac
    done
    local selected=("${scope[@]}" --all-features)
    case $kinds in
    doctests) enqueue_doctests "${selected[@]}" "$@" ;;
    programs) enqueue "${selected[@]}" "$@" ;;
    both)
        enqueue "${selected[@]}" --tests "$@"
        enqueue_doctests "${selected[@]}" "$@"
        ;;
    esac
    run_queue
}

# Runs the unit tests, the doctests and the test programs of some crates: some_crates CRATES PROGRAMS [FILTER]
some_crates() {
    local -a crates programs
    read -ra crates <<<"$1"
    read -ra programs <<<"$2"
    shift 2
    local selected=("${crates[@]/#/--package=leasehold-}" "${features[@]}")
    enqueue "${selected[@]}" --lib "${programs[@]/#/--test=}" -- "$@"
    enqueue_doctests "${selected[@]}" -- "$@"
    run_queue
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
