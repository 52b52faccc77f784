"""The protocol between the programs and the command: lines of JSON in, lines of JSON out."""

import json
import sys
from collections.abc import Callable, Iterator
from typing import Any


def run(main: Callable[..., object]) -> None:
    """Call *main* with the parameters of the command line."""
    main(**json.loads(sys.argv[1]))


def answer(found: object) -> None:
    """Write one line."""
    print(json.dumps(found), flush=True)


def requests() -> Iterator[Any]:
    """Yield the requests, line by line."""
    return map(json.loads, iter(sys.stdin.readline, ""))


def loop_factory(loop: str) -> Callable[[], Any]:
    """Return the factory of an event loop; "stock" is asyncio's own."""
    if loop == "uvloop":
        import uvloop

        return uvloop.new_event_loop
    import asyncio

    return asyncio.new_event_loop
