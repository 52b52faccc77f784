"""Write services on plain ``Service``: one that returns from its start, and one that runs on.

    python examples/plain_service.py --interval 2

The journal is open before the first line goes into it, and closed after the last one. Ctrl-C stops
the program.
"""

import argparse
import asyncio
import sqlite3
import time

from svcrun import Service, entrypoint


class Journal(Service):
    """A database that is open while the program runs."""

    path: str = ":memory:"

    async def start(self) -> None:
        # The service has started when start() returns.
        self.database = sqlite3.connect(self.path)
        self.database.execute("CREATE TABLE IF NOT EXISTS journal (time REAL, line TEXT)")

    async def stop(self, exception: BaseException | None = None) -> None:
        (count,) = self.database.execute("SELECT count(*) FROM journal").fetchone()
        self.database.close()
        print(f"the journal is closed, it has {count} lines")

    def write(self, line: str) -> None:
        """Add a line."""
        with self.database:
            self.database.execute("INSERT INTO journal VALUES (?, ?)", (time.time(), line))


class Clock(Service):
    """A service that runs as long as the program."""

    __required__ = ("journal",)  # required
    journal: Journal
    interval: float = 1  # optional

    async def start(self) -> None:
        self.start_event.set()  # the service is ready; start() runs on
        while True:
            print(f"tick of {self.name}", flush=True)
            self.journal.write(f"tick of {self.name}")
            await asyncio.sleep(self.interval)

    async def stop(self, exception: BaseException | None = None) -> None:
        # start() is still running now. It is cancelled when every stop() has returned.
        self.journal.write(f"{self.name} was stopped")


def main() -> None:
    """Run the services until a signal ends them."""
    parser = argparse.ArgumentParser(description="Write a line into a database now and then.")
    parser.add_argument("--path", default=":memory:", help="of the database (%(default)s)")
    parser.add_argument("--interval", type=float, default=1, help="in seconds (%(default)s)")
    options = parser.parse_args()

    journal = Journal(path=options.path)
    clock = Clock(name="clock", journal=journal, interval=options.interval, depends_on=journal)
    with entrypoint(clock, journal) as loop:
        loop.run_forever()


if __name__ == "__main__":
    main()
