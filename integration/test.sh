#!/usr/bin/env bash
# All tests: installs what they need, then runs the unit tests, the documentation's programs and the tests on real servers.
# Arguments go to `cargo test`. `-p CRATE` runs the tests of one crate, and `-- FILTER` those whose name contains FILTER:
# `integration/test.sh -p leasehold-redis -- paused`.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
command -v cargo >/dev/null || PATH="$PATH:${CARGO_HOME:-${HOME:-/root}/.cargo}/bin"

integration/setup.sh

# Cargo ignores `-p` beside `--workspace`.
scope=(--workspace)
for argument in "$@"; do
    case $argument in
    --) break ;;
    -p* | --package*) scope=() ;;
    esac
done
# Tests of signals need their default actions, also where this was started by `nohup` or in the background.
exec env --default-signal=HUP,INT,QUIT cargo test "${scope[@]}" --all-features --locked --no-fail-fast "$@"
