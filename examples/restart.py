"""Restart a crashed service with back-off, until it crashes too often.

    python examples/restart.py

The feed breaks after some items. It is started again, together with the display, which depends on
it; a third restart within the window would be one too many, so the program ends with the error.
"""

import asyncio

from svcrun import Restart, Service, entrypoint


class Feed(Service):
    """A service that produces items until it crashes."""

    on_crash = Restart(limit=2, window=60, delay=0.2)

    async def start(self) -> None:
        self.items: asyncio.Queue[int] = asyncio.Queue()
        self.start_event.set()
        for item in range(3):
            await self.items.put(item)
            await asyncio.sleep(0.1)
        raise ConnectionError("the source is gone")


class Display(Service):
    """A service that prints the items of the feed."""

    __required__ = ("feed",)
    feed: Feed

    async def start(self) -> None:
        self.start_event.set()
        print("display starts", flush=True)
        while True:
            print("item", await self.feed.items.get(), flush=True)

    async def stop(self, exception: BaseException | None = None) -> None:
        print(f"display stops because of {exception!r}", flush=True)


def main() -> None:
    """Run the services until the feed has crashed too often, or a signal ends them."""
    feed = Feed()
    with entrypoint(feed, Display(feed=feed, depends_on=feed)) as loop:
        loop.run_forever()


if __name__ == "__main__":
    main()
