#!/usr/bin/env bash
# Runs flock(1) with the protocol of ../README.md. Argument: the file.
set -euo pipefail

send() { printf 'peer> %s\n' "$1"; }

exec 9<>"$1"
send ready
while read -r command; do
    case $command in
    lock) flock 9 && send held ;;
    try) if flock --nonblock 9; then send held; else send refused; fi ;;
    release) flock --unlock 9 && send released ;;
    *)
        printf 'no such command: %s\n' "$command" >&2
        exit 1
        ;;
    esac
done
