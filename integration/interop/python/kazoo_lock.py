"""Runs kazoo's `Lock` with the protocol of ../README.md.

Arguments: the servers, the path, and patterns of names that the lock must respect.
"""

import sys

from kazoo.client import KazooClient


def send(line):
    print(f"peer> {line}", flush=True)


def main(servers, path, *patterns):
    client = KazooClient(hosts=servers)
    client.start()
    lock = client.Lock(path, extra_lock_patterns=patterns)
    send("ready")
    for line in sys.stdin:
        command = line.strip()
        if command in ("lock", "try"):
            send("held" if lock.acquire(blocking=command == "lock") else "refused")
        elif command == "release":
            send("released" if lock.release() else "lost")
        else:
            sys.exit(f"no such command: {command!r}")
    client.stop()


main(*sys.argv[1:])
