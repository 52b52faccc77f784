import asyncio
from svcrun.eager import start_eagerly
from svcrun.service._reader import Reader
from svcrun.service._writer import Writer

class Connection(asyncio.Protocol):
    __slots__ = ("server", "transport", "reader", "writer", "task", "lost", "paused", "data_received")

    def __init__(self, server):
        self.server = server
        self.lost = self.paused = False
        reader = self.reader = Reader(self, server.loop, server.limit)
        self.data_received = reader.data_received

    def connection_made(self, transport):
        self.transport = transport
        server = self.server
        server.connections.add(self)
        reader = self.reader
        reader._transport = transport
        writer = self.writer = Writer(self, transport)
        self.task = start_eagerly(self._serve(reader, writer), server.loop, name="x")

    async def _serve(self, reader, writer):
        try:
            await self.server.handle_client(reader, writer)
        finally:
            self.transport.close()

    def eof_received(self):
        self.reader.feed_eof()
        return True
    def connection_lost(self, exc):
        self.lost = True
        self.server.connections.discard(self)
        self.reader.feed_eof()
    def pause_writing(self): self.paused = True
    def resume_writing(self): self.paused = False
    async def drain(self): await asyncio.sleep(0)
