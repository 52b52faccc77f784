"""Answer health checks, also while the event loop is blocked.

    python examples/health.py
    curl http://127.0.0.1:8081/livez
    curl http://127.0.0.1:8081/readyz?verbose

A client that sends "block 5" makes the server block the event loop for five seconds, and "ill" and
"well" change its health:

    echo block 5 | nc 127.0.0.1 8901
"""

import argparse
import asyncio
import time

from svcrun import entrypoint
from svcrun.service import HealthService, TCPServer


class Patient(TCPServer):
    """A server whose clients change its health."""

    is_well = True

    async def health(self) -> None:
        """Raise an exception if the server is not well."""
        if not self.is_well:
            raise RuntimeError("a client said so")

    async def handle_client(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        async for line in reader:
            word, _, number = line.decode().strip().partition(" ")
            if word == "block":
                time.sleep(float(number))  # noqa: ASYNC251 - blocks the event loop on purpose
            else:
                self.is_well = word != "ill"
            writer.write(b"done\n")


def main() -> None:
    """Run the server until a signal ends it."""
    parser = argparse.ArgumentParser(description="Answer health checks.")
    parser.add_argument("--port", type=int, default=8901, help="0 for a free one (%(default)s)")
    parser.add_argument("--health", type=int, default=8081, help="0 for a free one (%(default)s)")
    options = parser.parse_args()

    patient = Patient("127.0.0.1", options.port)
    health = HealthService(port=options.health, check_interval=0.5)
    with entrypoint(patient, health) as loop:
        print(f"listening on port {patient.port}, health checks on port {health.port}", flush=True)
        loop.run_forever()


if __name__ == "__main__":
    main()
