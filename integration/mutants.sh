#!/usr/bin/env bash
# Changes core in one place after another, and runs its fast tests on each change. A change that no test notices is a gap
# in the tests. `.cargo/mutants.toml` says which modules are changed and which tests run.
#
#   integration/mutants.sh          every change, in hours
#   integration/mutants.sh 0/10     the first of ten samples
#
# Further arguments are those of `cargo mutants`. target/mutants.out/missed.txt has the changes that no test noticed.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
command -v cargo >/dev/null || PATH="$PATH:${CARGO_HOME:-${HOME:-/root}/.cargo}/bin"

MUTANTS=27.1.0
if [[ $(cargo mutants --version 2>/dev/null) != "cargo-mutants $MUTANTS" ]]; then
    cargo install --locked "cargo-mutants@$MUTANTS"
fi
sample=${1:-0/1}
CARGO_INCREMENTAL=0 exec cargo mutants --output target --sharding round-robin --shard "$sample" "${@:2}"
