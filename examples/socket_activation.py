"""Serve on the sockets that systemd has opened, or on free addresses without systemd.

systemd-socket-activate -l 127.0.0.1:8901 --fdname=shop python examples/socket_activation.py
nc -w1 127.0.0.1 8901 < /dev/null
"""

import argparse
import asyncio
import os

from svcrun import entrypoint
from svcrun.service import TCPServer


class Shop(TCPServer):
    """A TCP server that tells the process id, so that a restart can be seen."""

    async def handle_client(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        writer.write(f"welcome to process {os.getpid()}\n".encode())


def main() -> None:
    """Run the server until a signal ends it."""
    parser = argparse.ArgumentParser(description="Serve on a socket that systemd has opened.")
    parser.add_argument("--name", default="shop", help="FileDescriptorName (%(default)s)")
    parser.add_argument("--port", type=int, default=8901, help="without systemd (%(default)s)")
    options = parser.parse_args()

    shop = Shop(sock=f"fd:{options.name}", address="127.0.0.1", port=options.port)
    with entrypoint(shop) as loop:
        print(f"listening on {shop.address} port {shop.port}", flush=True)
        loop.run_forever()


if __name__ == "__main__":
    main()
