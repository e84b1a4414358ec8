#!/usr/bin/env bash
# Installs the dependencies of the tests, then runs the unit tests, the doctests and the tests on real
# servers. Arguments are passed to `cargo test`: `-p CRATE` runs the tests of one crate, and `-- FILTER`
# those whose name contains FILTER, as in `integration/test.sh -p leasehold-redis -- paused`.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
command -v cargo >/dev/null || PATH="$PATH:${CARGO_HOME:-${HOME:-/root}/.cargo}/bin"

integration/setup.sh

# Cargo ignores `-p` together with `--workspace`.
scope=(--workspace)
for argument in "$@"; do
    case $argument in
    --) break ;;
    -p* | --package*) scope=() ;;
    esac
done
# Tests of signals need the default actions, which `nohup` and background jobs change.
exec env --default-signal=HUP,INT,QUIT cargo test "${scope[@]}" --all-features --locked --no-fail-fast "$@"
