r"""Serve TCP clients: echo each line.

    python examples/tcp_echo.py
    printf 'hello\n' | nc -w1 127.0.0.1 8901

A client whose line is longer than ``limit`` bytes loses its connection, as the log tells; one that
does not read its answers waits in ``drain()``, and takes up little memory. One that sends nothing
for a while is disconnected, and clients beyond a maximum wait until others disconnect:

    python examples/tcp_echo.py --max-connections 1 --idle-timeout 10
"""

import argparse
import asyncio

from svcrun import entrypoint
from svcrun.service import TCPServer


class Echo(TCPServer):
    """A TCP server that echoes each line."""

    async def handle_client(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        async for line in reader:
            writer.write(line)
            await writer.drain()


def main() -> None:
    """Run the server until a signal ends it."""
    parser = argparse.ArgumentParser(description="Send back each line that a client sends.")
    parser.add_argument("--address", default="127.0.0.1", help="where to listen (%(default)s)")
    parser.add_argument("--port", type=int, default=8901, help="0 for a free one (%(default)s)")
    parser.add_argument(
        "--max-connections", type=int, default=1000, help="clients at a time (%(default)s)"
    )
    parser.add_argument(
        "--idle-timeout", type=float, default=300, help="seconds of silence (%(default)s)"
    )
    options = parser.parse_args()

    echo = Echo(
        address=options.address,
        port=options.port,
        limit=4096,
        max_connections=options.max_connections,
        idle_timeout=options.idle_timeout,
        keepalive=60,
    )
    with entrypoint(echo) as loop:
        print(f"listening on {echo.address} port {echo.port}", flush=True)
        loop.run_forever()


if __name__ == "__main__":
    main()
