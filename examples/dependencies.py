"""Order services by their dependencies: start in one order, stop in the opposite one.

    python examples/dependencies.py

The order in which the services are given does not matter. Those that do not depend on each other,
here the cache and the queue, start at the same time and stop at the same time.
"""

import asyncio

from svcrun import Service, entrypoint


class Part(Service):
    """A service that logs its start and stop."""

    async def start(self) -> None:
        print(self.name, "starts")
        await asyncio.sleep(0.1)
        print(self.name, "has started")

    async def stop(self, exception: BaseException | None = None) -> None:
        print(self.name, "stops")
        await asyncio.sleep(0.1)
        print(self.name, "has stopped")


class Database(Part):
    """A service that others depend on."""


class Web(Part):
    """A service that depends on the others."""


def main() -> None:
    """Start and stop four services."""
    database = Database(name="database")
    cache = Part(name="cache", depends_on=database)  # this instance
    queue = Part(name="queue", depends_on=Database)  # every instance of the class
    web = Web(name="web", depends_on=(cache, queue))
    with entrypoint(web, queue, cache, database):
        print("-- all have started")


if __name__ == "__main__":
    main()
