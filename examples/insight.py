r"""Find memory leaks and code that blocks the event loop.

    python examples/insight.py
    printf 'leak 20000\nblock 2\n' | nc -w1 127.0.0.1 8901
    echo lag | nc -w1 127.0.0.1 8901

Every other second the log has a table of the lines that hold most memory, and, while something
blocks the event loop, the stack of that. The answer to ``lag`` is what a program would hand on to
its metrics.
"""

import argparse
import asyncio
import os
import time

from svcrun import entrypoint
from svcrun.service import LoopWatchdog, MemoryTracer, TCPServer


class Faulty(TCPServer):
    """A server with the faults that its clients ask for."""

    __required__ = ("watchdog",)
    watchdog: LoopWatchdog

    async def handle_client(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        async for line in reader:
            match line.split():
                case [b"leak", count]:
                    self.leak(int(count))
                case [b"block", seconds]:
                    time.sleep(float(seconds))  # noqa: ASYNC251 - the fault
                case [b"lag"]:
                    lag = self.watchdog.lag
                    answer = f"{lag.incidents} incidents, {lag.blocked:.1f} s blocked\n"
                    writer.write(answer.encode())
                case _:
                    writer.write(b"unknown command\n")

    def leak(self, count: int) -> None:
        leaked.extend(os.urandom(100) for _ in range(count))


leaked: list[bytes] = []


def main() -> None:
    """Run the server until a signal ends it."""
    parser = argparse.ArgumentParser(description="Leak memory and block the event loop on request.")
    parser.add_argument("--address", default="127.0.0.1", help="where to listen (%(default)s)")
    parser.add_argument("--port", type=int, default=8901, help="0 for a free one (%(default)s)")
    parser.add_argument(
        "--interval", type=float, default=2, help="seconds between two tables (%(default)s)"
    )
    options = parser.parse_args()

    watchdog = LoopWatchdog(threshold=0.5)
    faulty = Faulty(address=options.address, port=options.port, watchdog=watchdog)
    tracer = MemoryTracer(interval=options.interval, top_results=5)
    with entrypoint(faulty, watchdog, tracer) as loop:
        print(f"listening on {faulty.address} port {faulty.port}", flush=True)
        loop.run_forever()


if __name__ == "__main__":
    main()
