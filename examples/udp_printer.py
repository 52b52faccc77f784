"""Receive datagrams: print each one, and answer with its length.

python examples/udp_printer.py
printf hello | nc -u -w1 127.0.0.1 3000
"""

import argparse
from typing import Any

from svcrun import entrypoint
from svcrun.service import UDPServer


class Printer(UDPServer):
    """A UDP server that prints each datagram."""

    async def handle_datagram(self, data: bytes, addr: Any) -> None:
        print(addr[0], "->", data, flush=True)
        self.sendto(f"{len(data)} bytes\n".encode(), addr)


def main() -> None:
    """Run the server until a signal ends it."""
    parser = argparse.ArgumentParser(description="Print the datagrams that arrive.")
    parser.add_argument("--address", default="127.0.0.1", help="where to listen (%(default)s)")
    parser.add_argument("--port", type=int, default=3000, help="0 for a free one (%(default)s)")
    options = parser.parse_args()

    printer = Printer(address=options.address, port=options.port)
    with entrypoint(printer) as loop:
        print(f"listening on {printer.address} port {printer.port}", flush=True)
        loop.run_forever()


if __name__ == "__main__":
    main()
