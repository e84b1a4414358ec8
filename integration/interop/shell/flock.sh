#!/usr/bin/env bash
# flock(1), told line by line: see ../README.md. Argument: the file.
set -euo pipefail

tell() { printf 'peer> %s\n' "$1"; }

exec 9<>"$1"
tell ready
while read -r order; do
    case $order in
    lock) flock 9 && tell held ;;
    try) if flock --nonblock 9; then tell held; else tell refused; fi ;;
    release) flock --unlock 9 && tell released ;;
    *)
        printf 'no such order: %s\n' "$order" >&2
        exit 1
        ;;
    esac
done
