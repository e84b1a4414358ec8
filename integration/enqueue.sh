#!/usr/bin/env bash
# What integration/test.sh has cargo run in place of each test program: writes the program, its arguments, its folder
# and its variables to a script in LEASEHOLD_QUEUE, which integration/test.sh runs later.
set -euo pipefail

program=${1##*/}
queue=$LEASEHOLD_QUEUE
# The tests see the variables of whoever runs them, and not this one.
unset LEASEHOLD_QUEUE
number=$(find "$queue" -name '*.job' | wc -l)
{
    export -p
    printf 'cd %q\nexec' "$PWD"
    printf ' %q' "$@"
    echo
} >"$(printf '%s/%03d %s %s.job' "$queue" "$number" "$CARGO_PKG_NAME" "${program%-*}")"
