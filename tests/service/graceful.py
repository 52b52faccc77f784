"""Services with graceful tasks for the tests."""

import asyncio
import contextlib
import logging
from typing import Any

import pytest

from svcrun.service import GracefulService


class Plain(GracefulService):
    """A service with tasks."""

    async def start(self) -> None: ...


class Noting(Plain):
    """A service that notes how its tasks end."""

    def __init__(self, *, notes: tuple[str, ...] = (), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.notes = list(notes)

    async def sleep(self, name: str, seconds: float) -> None:
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            self.notes.append(f"{name} is cancelled")
            raise
        self.notes.append(f"{name} is done")


def now() -> float:
    return asyncio.get_running_loop().time()


async def ignore_cancellation(seconds: float) -> None:
    """Run for `seconds`, and ignore cancellation."""
    end = now() + seconds
    while (left := end - now()) > 0:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(left)


def messages(caplog: pytest.LogCaptureFixture, level: int = logging.WARNING) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= level]
