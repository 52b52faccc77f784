r"""Serve TLS clients: echo each line.

A certificate to try it with, and a client that knows it:

    openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost \
        -addext subjectAltName=DNS:localhost -keyout key.pem -out cert.pem
    python examples/tls_echo.py --cert cert.pem --key key.pem
    openssl s_client -quiet -verify_return_error -CAfile cert.pem -connect localhost:8900

With ``--ca ca.pem`` only clients are served that show a certificate of that authority.
"""

import argparse
import asyncio
import ssl

from svcrun import entrypoint
from svcrun.service import TLSServer


class SecureEcho(TLSServer):
    """A TLS server that echoes each line."""

    async def handle_client(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        async for line in reader:
            writer.write(line)
            await writer.drain()


def main() -> None:
    """Run the server until a signal ends it."""
    parser = argparse.ArgumentParser(description="Send back each line that a client sends.")
    parser.add_argument("--address", default="localhost", help="where to listen (%(default)s)")
    parser.add_argument("--port", type=int, default=8900, help="0 for a free one (%(default)s)")
    parser.add_argument("--cert", required=True, help="the server's certificate, a PEM file")
    parser.add_argument("--key", required=True, help="its private key")
    parser.add_argument("--ca", help="the authority of the clients that are served")
    parser.add_argument("--tls12", action="store_true", help="also serve clients without TLS 1.3")
    options = parser.parse_args()

    echo = SecureEcho(
        address=options.address,
        port=options.port,
        cert=options.cert,
        key=options.key,
        ca=options.ca,
        require_client_cert=options.ca is not None,
        minimum_version=ssl.TLSVersion.TLSv1_2 if options.tls12 else ssl.TLSVersion.TLSv1_3,
    )
    with entrypoint(echo) as loop:
        print(f"listening on {echo.address} port {echo.port}", flush=True)
        loop.run_forever()


if __name__ == "__main__":
    main()
