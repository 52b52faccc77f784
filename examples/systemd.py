"""Report to systemd: readiness, reloads, the stop, and a watchdog.

To see the messages without systemd, in one terminal and then in another:

    socat UNIX-RECV:/tmp/notify.sock -
    NOTIFY_SOCKET=/tmp/notify.sock python examples/systemd.py --watchdog 2

``kill -HUP`` makes it read its greeting again. The page "Run under systemd" of the
manual has a unit.
"""

import argparse
import asyncio
from pathlib import Path

from svcrun import entrypoint
from svcrun.service import TCPServer
from svcrun.service.sdwatchdog import SDWatchdogService


class Greeter(TCPServer):
    """A server that greets each client, by the text in a file if there is one."""

    file: Path | None = None
    greeting = "hello"

    async def start(self) -> None:
        await self.reload()
        await super().start()

    async def reload(self) -> None:
        """Read the greeting again."""
        if self.file is not None:
            self.greeting = self.file.read_text(encoding="utf-8").strip()

    async def handle_client(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        writer.write(self.greeting.encode() + b"\n")


def main() -> None:
    """Run the server until a signal ends it."""
    parser = argparse.ArgumentParser(description="Greet clients, under systemd.")
    parser.add_argument("--port", type=int, default=8901, help="0 for a free one (%(default)s)")
    parser.add_argument("--file", type=Path, help="a file with the greeting")
    parser.add_argument("--watchdog", type=float, help="seconds; that of the unit by default")
    options = parser.parse_args()

    greeter = Greeter("127.0.0.1", options.port, file=options.file)
    with entrypoint(greeter, SDWatchdogService(options.watchdog)) as loop:
        print(f"listening on {greeter.address} port {greeter.port}", flush=True)
        loop.run_forever()


if __name__ == "__main__":
    main()
