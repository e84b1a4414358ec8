"""redis-py's `Lock`, told line by line: see ../README.md. Arguments: URL, name, TTL in seconds."""

import sys

import redis
from redis.exceptions import LockError


def tell(line):
    print(f"peer> {line}", flush=True)


def main(url, name, ttl):
    lock = redis.Redis.from_url(url).lock(name, timeout=float(ttl), sleep=0.01)
    tell("ready")
    for line in sys.stdin:
        order = line.strip()
        if order in ("lock", "try"):
            tell("held" if lock.acquire(blocking=order == "lock") else "refused")
        elif order == "release":
            try:
                lock.release()
                tell("released")
            except LockError:
                tell("lost")
        else:
            sys.exit(f"no such order: {order!r}")


main(*sys.argv[1:])
