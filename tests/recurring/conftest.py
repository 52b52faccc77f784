"""What recurs is tested in virtual time."""

import asyncio
from collections.abc import AsyncIterator, Mapping

import pytest
import pytest_asyncio

from tests.support import LoopFactory
from tests.support_clock import VirtualClockLoop, nothing_left_in


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, LoopFactory]:
    """Run the coroutine tests of this folder in virtual time."""
    return {"virtual": VirtualClockLoop}


@pytest_asyncio.fixture(autouse=True)
async def _nothing_left() -> AsyncIterator[None]:
    """Fail a test that leaves a task, a timer or an untaken error in its loop."""
    loop = asyncio.get_running_loop()
    if not isinstance(loop, VirtualClockLoop):  # around a test that is no coroutine
        yield
        return
    with nothing_left_in(loop):
        yield
