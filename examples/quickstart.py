"""Count events: clients report them by UDP, and read the counts by TCP or with a browser.

Three services make up the program: a UDP server, a TCP server, and a heartbeat that is written on
plain ``Service``. Run it; it prints what to type to talk to it. Ctrl-C stops it.

    python examples/quickstart.py
"""

import argparse
import asyncio
import logging
from collections import Counter
from typing import Any

from svcrun import Service, entrypoint
from svcrun.service import TCPServer, UDPServer

log = logging.getLogger("quickstart")


class Collector(UDPServer):
    """Count the events whose names arrive, and answer each with its count."""

    counts: Counter[str]

    async def handle_datagram(self, data: bytes, addr: Any) -> None:
        for name in data.decode(errors="replace").split():
            self.counts[name] += 1
            self.sendto(f"{name} {self.counts[name]}\n".encode(), addr)


class Reporter(TCPServer):
    """Answer a line with the count of the event that it names, and an HTTP request with all."""

    counts: Counter[str]

    async def handle_client(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        async for line in reader:
            name = line.decode(errors="replace").strip()
            if name.endswith(("HTTP/1.0", "HTTP/1.1")):
                await self.answer_http(reader, writer)
                return
            writer.write(f"{name} {self.counts[name]}\n".encode())
            await writer.drain()

    async def answer_http(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while (await reader.readline()).strip():
            pass  # the headers of the request
        body = "".join(f"{name} {count}\n" for name, count in self.counts.most_common()).encode()
        head = f"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\n"
        writer.write(head.encode() + b"Connection: close\r\n\r\n" + body)


class Heartbeat(Service):
    """Log every `interval` seconds what was counted, and once more at the end."""

    __required__ = ("counts",)

    counts: Counter[str]
    interval: float = 10

    async def start(self) -> None:
        self.start_event.set()  # the service is ready; start() runs on
        while True:
            self.report()
            await asyncio.sleep(self.interval)

    async def stop(self, exception: BaseException | None = None) -> None:
        self.report()

    def report(self) -> None:
        log.info("%s: %d events of %d kinds", self.name, self.counts.total(), len(self.counts))


def usage(collector: Collector, reporter: Reporter) -> str:
    """Return what to type to talk to the services."""
    host = f"[{reporter.address}]" if ":" in str(reporter.address) else reporter.address
    return f"""
Talk to it from another terminal:

    printf 'cats dogs cats' | nc -u -w1 {collector.address} {collector.port}
    printf 'cats\\ndogs\\n' | nc -w1 {reporter.address} {reporter.port}
    curl http://{host}:{reporter.port}/

Ctrl-C stops it.
"""


def main() -> None:
    """Run the services until a signal ends them."""
    parser = argparse.ArgumentParser(
        description="Count events: report them by UDP, read the counts by TCP."
    )
    parser.add_argument("--address", default="127.0.0.1", help="where to listen (%(default)s)")
    parser.add_argument(
        "--port", type=int, default=8901, help="the TCP port, 0 for a free one (%(default)s)"
    )
    parser.add_argument("--udp-port", type=int, default=3000, help="the UDP port (%(default)s)")
    parser.add_argument(
        "--interval", type=float, default=10, help="seconds between heartbeats (%(default)s)"
    )
    options = parser.parse_args()

    counts: Counter[str] = Counter()
    collector = Collector(address=options.address, port=options.udp_port, counts=counts)
    reporter = Reporter(address=options.address, port=options.port, counts=counts)
    heartbeat = Heartbeat(name="heartbeat", interval=options.interval, counts=counts)

    with entrypoint(collector, reporter, heartbeat) as loop:
        print(usage(collector, reporter), flush=True)
        loop.run_forever()


if __name__ == "__main__":
    main()
