"""Compute in a process of its own, so that the event loop stays free.

    python examples/process.py

It logs prime numbers. Kill the process whose number is in the log, and a new one takes its place.
"""

import argparse
import itertools
import logging
import os
import time

from svcrun import entrypoint
from svcrun.service import RespawningProcessService

log = logging.getLogger("process")


class Primes(RespawningProcessService):
    """Log a prime number in each interval, from a process of its own."""

    interval: float = 1

    def in_process(self) -> None:
        """Compute."""
        log.info("computing in process %d", os.getpid())
        for number in itertools.count(2):
            if all(number % divisor for divisor in range(2, number)):
                log.info("%d is a prime number", number)
                time.sleep(self.interval)


def main() -> None:
    """Run the service until a signal ends it."""
    parser = argparse.ArgumentParser(description="Log prime numbers.")
    parser.add_argument("--interval", type=float, default=1, help="seconds (%(default)s)")
    options = parser.parse_args()

    with entrypoint(Primes(interval=options.interval)) as loop:
        loop.run_forever()


if __name__ == "__main__":
    main()
