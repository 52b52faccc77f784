"""HTTP clients that count the requests which are lost when their server gets SIGTERM.

The answer is the numbers of requests that were answered and lost. A refused connection loses no
request.
"""

import asyncio
import os
import signal

from benchmarks.programs.protocol import answer, run

REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
LAST_REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
BODY = 11
TIME_LIMIT = 60.0


class Clients:
    """Clients of one server.

    :param port: that of the server.
    :param server: its process ID.
    :param requests: the number of responses after which the server gets SIGTERM.
    """

    def __init__(self, port: int, server: int, requests: int) -> None:
        self.port = port
        self.server = server
        self.requests = requests
        self.answered = self.lost = 0

    async def ask_on(self, *, keep_alive: bool) -> None:
        """Send requests without a pause, until connections are refused."""
        while True:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            except ConnectionRefusedError:
                return
            except OSError:
                self.lost += 1
                continue
            try:
                while await self.ask(reader, writer, REQUEST if keep_alive else LAST_REQUEST):
                    pass
            except (OSError, asyncio.IncompleteReadError):
                self.lost += 1
            writer.close()

    async def ask(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes
    ) -> bool:
        """Send a request, and return whether the connection can be used again."""
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(BODY)
        self.answered += 1
        if self.answered == self.requests:
            os.kill(self.server, signal.SIGTERM)
        return b"connection: close" not in head.lower()

    async def ask_late(self, number: int, pause: float) -> None:
        """Send a request on each of so many idle connections, some seconds after SIGTERM."""
        connections = [await asyncio.open_connection("127.0.0.1", self.port) for _ in range(number)]
        for reader, writer in connections:
            await self.ask(reader, writer, REQUEST)
        os.kill(self.server, signal.SIGTERM)
        await asyncio.sleep(pause)
        for reader, writer in connections:
            try:
                await self.ask(reader, writer, REQUEST)
            except (OSError, asyncio.IncompleteReadError):
                self.lost += 1
            writer.close()


async def use(
    port: int, server: int, persistent: int, one_shot: int, requests: int, pause: float | None
) -> Clients:
    clients = Clients(port, server, requests)
    async with asyncio.timeout(TIME_LIMIT), asyncio.TaskGroup() as group:
        if pause is not None:
            group.create_task(clients.ask_late(persistent, pause))
        for number in range(0 if pause is not None else persistent + one_shot):
            group.create_task(clients.ask_on(keep_alive=number < persistent))
    return clients


def main(
    port: int, server: int, persistent: int, one_shot: int, requests: int, pause: float | None
) -> None:
    clients = asyncio.run(use(port, server, persistent, one_shot, requests, pause))
    answer([clients.answered, clients.lost])


if __name__ == "__main__":
    run(main)
