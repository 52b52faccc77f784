"""Plain asyncio servers that close each connection properly on SIGTERM."""

import asyncio
import signal

from benchmarks.programs.protocol import answer, loop_factory, run


async def close_writers() -> None:
    """Serve; at the end close all writers at once, then wait for them and for their handlers."""
    told_to_end = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told_to_end.set)
    clients: dict[asyncio.StreamWriter, asyncio.Task[None] | None] = {}

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        clients[writer] = asyncio.current_task()
        try:
            while line := await reader.readline():
                writer.write(line)
                await writer.drain()
        finally:
            writer.close()
            del clients[writer]

    server = await asyncio.start_server(echo, "127.0.0.1", 0, backlog=1024)
    answer([server.sockets[0].getsockname()[1]])
    await told_to_end.wait()

    server.close()
    handlers = [task for task in clients.values() if task is not None]
    writers = list(clients)
    for writer in writers:
        writer.close()
    await asyncio.gather(*[writer.wait_closed() for writer in writers], return_exceptions=True)
    await asyncio.gather(*handlers, return_exceptions=True)
    await server.wait_closed()


async def cancel_handlers() -> None:
    """Serve; at the end let the runner cancel the handlers, each of which closes its writer."""
    told_to_end = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told_to_end.set)

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                writer.write(line)
                await writer.drain()
        finally:
            writer.close()
            await writer.wait_closed()

    server = await asyncio.start_server(echo, "127.0.0.1", 0, backlog=1024)
    answer([server.sockets[0].getsockname()[1]])
    await told_to_end.wait()
    server.close()


def main(loop: str, way: str) -> None:
    serve = {"close writers": close_writers, "cancel handlers": cancel_handlers}[way]
    with asyncio.Runner(loop_factory=loop_factory(loop)) as runner:
        runner.run(serve())


if __name__ == "__main__":
    run(main)
