"""How the programs talk to the process that started them: JSON in, lines of JSON out."""

import json
import sys
from collections.abc import Callable
from typing import Any


def run(main: Callable[..., object]) -> None:
    """Call *main* with the parameters of the command line, and answer what it returns, if anything."""
    found = main(**json.loads(sys.argv[1]))
    if found is not None:
        answer(found)


def answer(found: object) -> None:
    """Write one line."""
    print(json.dumps(found), flush=True)


def wait() -> None:
    """Wait for the word to go on."""
    sys.stdin.readline()


def loop_factory(loop: str) -> Callable[[], Any]:
    """Return what makes an event loop: "stock" is asyncio's own."""
    if loop == "uvloop":
        import uvloop

        return uvloop.new_event_loop
    import asyncio

    return asyncio.new_event_loop
