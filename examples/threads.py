"""Run blocking functions in threads, so that they do not block the event loop.

    python examples/threads.py README.rst LICENSE

Prints the SHA-256 digest of each file. Meanwhile a service shows that the event loop is free.
"""

import argparse
import asyncio
import hashlib
import sys
from pathlib import Path

import svcrun
from svcrun import Service, threaded


class Progress(Service):
    """A service that prints dots while the event loop is not blocked."""

    async def start(self) -> None:
        self.start_event.set()
        while True:
            print(".", end="", file=sys.stderr, flush=True)
            await asyncio.sleep(0.1)


@threaded
def digest(path: Path) -> str:
    """Return the digest of a file; each call runs in a thread of the pool."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


async def print_digests(paths: list[Path]) -> None:
    """Read all files at the same time, within the size of the pool."""
    for path, found in zip(paths, await asyncio.gather(*map(digest, paths)), strict=True):
        print(found, path)


def main() -> None:
    """Run until the files are read."""
    parser = argparse.ArgumentParser(description="Print the SHA-256 digest of each file.")
    parser.add_argument("paths", nargs="+", type=Path)
    options = parser.parse_args()
    svcrun.run(print_digests(options.paths), Progress(), pool_size=4)


if __name__ == "__main__":
    main()
