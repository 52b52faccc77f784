r"""Serve clients behind a load balancer, and know their addresses.

    python examples/proxy_protocol.py --trusted 127.0.0.1
    printf 'PROXY TCP4 192.0.2.1 198.51.100.7 52011 80\r\n' | nc -w1 127.0.0.1 8901

For HAProxy, a server line of the backend is ``server one 127.0.0.1:8901 send-proxy-v2 check``; for
nginx, a server block of the stream module has ``proxy_protocol on;``. A client that connects past
them is disconnected, as the log tells.
"""

import argparse
import asyncio

from svcrun import entrypoint
from svcrun.service import TCPServer


class Greeter(TCPServer):
    """A TCP server that tells clients their addresses."""

    async def handle_client(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        client = writer.get_extra_info("peername")
        if writer.get_extra_info("proxy") is None:
            return  # a health check of the balancer itself
        writer.write(f"hello {client[0]} port {client[1]}\n".encode())


def main() -> None:
    """Run the server until a signal ends it."""
    parser = argparse.ArgumentParser(description="Greet clients that connect by a load balancer.")
    parser.add_argument("--address", default="127.0.0.1", help="where to listen (%(default)s)")
    parser.add_argument("--port", type=int, default=8901, help="0 for a free one (%(default)s)")
    parser.add_argument(
        "--trusted",
        action="append",
        help="address or network of a balancer (127.0.0.0/8 and ::1), may be repeated",
    )
    options = parser.parse_args()

    greeter = Greeter(
        address=options.address,
        port=options.port,
        proxy_protocol="any",
        proxy_trusted=options.trusted or Greeter.proxy_trusted,
    )
    with entrypoint(greeter) as loop:
        print(f"listening on {greeter.address} port {greeter.port}", flush=True)
        loop.run_forever()


if __name__ == "__main__":
    main()
