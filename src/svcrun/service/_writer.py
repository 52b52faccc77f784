import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from svcrun.service._connection import Connection


class Writer(asyncio.StreamWriter):
    def __init__(self, connection: "Connection", transport: Any) -> None:
        self._connection = connection
        self._transport = transport
        self.write = transport.write

    def __del__(self): pass

    async def drain(self) -> None:
        c = self._connection
        if c.paused or c.lost or self._transport.is_closing():
            await c.drain()
