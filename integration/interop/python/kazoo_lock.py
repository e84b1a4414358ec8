"""kazoo's `Lock`, told line by line: see ../README.md. Arguments: servers, path, patterns of names that it is to respect."""

import sys

from kazoo.client import KazooClient


def tell(line):
    print(f"peer> {line}", flush=True)


def main(servers, path, *patterns):
    client = KazooClient(hosts=servers)
    client.start()
    lock = client.Lock(path, extra_lock_patterns=patterns)
    tell("ready")
    for line in sys.stdin:
        order = line.strip()
        if order in ("lock", "try"):
            tell("held" if lock.acquire(blocking=order == "lock") else "refused")
        elif order == "release":
            tell("released" if lock.release() else "lost")
        else:
            sys.exit(f"no such order: {order!r}")
    client.stop()


main(*sys.argv[1:])
