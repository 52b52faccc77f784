"""Keep a connection to a TCP server: print each line that it sends.

A server to try it with, in another terminal:

    python examples/tcp_client.py --port 8901
    nc -l 127.0.0.1 8901

End ``nc`` and start it again: the client connects again. ``--ca`` makes it a TLS client.
"""

import argparse
import asyncio

from svcrun import entrypoint
from svcrun.service import RobustTCPClient, RobustTLSClient


class Printer(RobustTCPClient):
    """A client that says hello and prints each line from the server."""

    async def handle_connection(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        writer.write(b"hello\n")
        async for line in reader:
            print(line.decode(errors="replace").rstrip("\r\n"), flush=True)


class SecurePrinter(RobustTLSClient, Printer):
    """The same over TLS."""


def main() -> None:
    """Run the client until a signal ends it."""
    parser = argparse.ArgumentParser(description="Print each line that a server sends.")
    parser.add_argument("--address", default="127.0.0.1", help="the server (%(default)s)")
    parser.add_argument("--port", type=int, default=8901, help="its port (%(default)s)")
    parser.add_argument("--ca", help="the authority of the server's certificate: use TLS")
    parser.add_argument(
        "--reconnect", type=float, default=1, help="seconds before a new connection (%(default)s)"
    )
    options = parser.parse_args()

    delays = {"reconnect_timeout": options.reconnect, "connect_retry_timeout": options.reconnect}
    client: Printer
    if options.ca is None:
        client = Printer(options.address, options.port, **delays)
    else:
        client = SecurePrinter(options.address, options.port, ca=options.ca, **delays)
    with entrypoint(client) as loop:
        loop.run_forever()


if __name__ == "__main__":
    main()
