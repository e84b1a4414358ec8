"""Runs redis-py's `Lock` with the protocol of ../README.md.

Arguments: the URL, the name, and the TTL in seconds.
"""

import sys

import redis
from redis.exceptions import LockError


def send(line):
    print(f"peer> {line}", flush=True)


def main(url, name, ttl):
    lock = redis.Redis.from_url(url).lock(name, timeout=float(ttl), sleep=0.01)
    send("ready")
    for line in sys.stdin:
        command = line.strip()
        if command in ("lock", "try"):
            send("held" if lock.acquire(blocking=command == "lock") else "refused")
        elif command == "release":
            try:
                lock.release()
                send("released")
            except LockError:
                send("lost")
        else:
            sys.exit(f"no such command: {command!r}")


main(*sys.argv[1:])
