#!/usr/bin/env bash
# All tests: installs what they need, then runs the unit tests, the documentation's programs and the tests on real servers.
# Arguments go to `cargo test`: `integration/test.sh -p leasehold-redis`, `integration/test.sh -- paused`.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
command -v cargo >/dev/null || PATH="$PATH:${CARGO_HOME:-${HOME:-/root}/.cargo}/bin"

integration/setup.sh
exec cargo test --workspace --all-features --locked --no-fail-fast "$@"
