"""Run many services, or none, until SIGTERM."""

import asyncio
import importlib
import signal
from typing import Any

from benchmarks.programs.lifecycle import RunsOn
from benchmarks.programs.protocol import answer, loop_factory, run


def baseline(loop: str, _services: int) -> None:
    """Run plain asyncio as the baseline: no services, no clean-up."""

    async def wait() -> None:
        told_to_end = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told_to_end.set)
        answer("running")
        await told_to_end.wait()

    with asyncio.Runner(loop_factory=loop_factory(loop)) as runner:
        runner.run(wait())


def svcrun(loop: str, services: int) -> None:
    """Run services of svcrun."""
    from svcrun import Service, entrypoint

    service: Any = type("Service", (RunsOn, Service), {})
    made = [service() for _ in range(services)]
    with entrypoint(*made, loop_factory=loop_factory(loop)) as running:
        answer("running")
        running.run_forever()


def aiomisc(loop: str, services: int) -> None:
    """Run services of aiomisc."""
    library = importlib.import_module("aiomisc")
    service: Any = type("Service", (RunsOn, library.Service), {})
    made = [service() for _ in range(services)]
    with library.entrypoint(*made, loop_factory=loop_factory(loop)) as running:
        answer("running")
        running.run_forever()


def main(side: str, loop: str, services: int) -> None:
    {"baseline": baseline, "svcrun": svcrun, "aiomisc": aiomisc}[side](loop, services)


if __name__ == "__main__":
    run(main)
