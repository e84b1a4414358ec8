#!/usr/bin/env bash
# Searches for input that breaks a parser.
#
# usage: fuzz/run.sh [TARGET | all | list] [SECONDS]
#
# Each target runs for SECONDS (30), two at a time on each processor. First it tries the inputs in
# fuzz/corpus/TARGET. What it finds is kept in target/fuzzing, and an input that breaks a property is printed with the
# command that repeats it.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
command -v cargo >/dev/null || PATH="$PATH:${CARGO_HOME:-${HOME:-/root}/.cargo}/bin"
target=${1:-all}
seconds=${2:-30}
[[ $seconds =~ ^[0-9]+$ ]] || { echo "usage: fuzz/run.sh [TARGET | all | list] [SECONDS]" >&2; exit 64; }

folder=${CARGO_TARGET_DIR:-target}
# With the features of the whole workspace, the dependencies are those that the tests were built with.
RUSTC_WORKSPACE_WRAPPER=$PWD/fuzz/instrument \
    cargo build --quiet --locked --workspace --all-features --bin fuzz
found=$folder/fuzzing
mkdir -p "$found"
# Another build of the workspace replaces the program.
program=$found/fuzz
cp "$folder/debug/fuzz" "$program.new" && mv "$program.new" "$program"

names=$(LEASEHOLD_FUZZ_TARGET=list "$program" -runs=0 2>/dev/null)
case $target in
list) echo "$names" && exit ;;
all) chosen=$names ;;
*) chosen=$target ;;
esac
for name in $chosen; do
    grep -qx -- "$name" <<<"$names" || { echo "there is no target $name; fuzz/run.sh list lists them" >&2; exit 64; }
    [[ -n $(ls -A "fuzz/corpus/$name" 2>/dev/null) ]] || { echo "fuzz/corpus/$name has no input" >&2; exit 1; }
done

# fuzz NAME
fuzz() {
    local name=$1 log=$found/$1.log
    mkdir -p "$found/$name"
    # The limits are those of a parser that does not end or keeps too much.
    if LEASEHOLD_FUZZ_TARGET=$name nice "$program" "$found/$name" "fuzz/corpus/$name" \
        -max_total_time="$seconds" -max_len=4096 -timeout=60 -rss_limit_mb=1024 \
        -artifact_prefix="$found/$name-" -print_final_stats=1 >"$log" 2>&1; then
        awk -v name="$name" '/^#.*DONE/ { cov = $4 } /number_of_executed_units/ { runs = $2 }
            END { printf "%-16s ok: %d runs, %d branches\n", name, runs, cov }' "$log"
    else
        printf -- '%-16s FAILED; the end of %s:\n' "$name" "$log"
        grep -av '^#[0-9]' "$log" | tail -n 40
        printf 'Repeat it with: LEASEHOLD_FUZZ_TARGET=%s %s FILE\n' "$name" "$program"
        return 1
    fi
}
export -f fuzz
export found seconds program
printf '%s\n' $chosen | xargs -P "$((2 * $(nproc)))" -I{} bash -c 'fuzz {}'
