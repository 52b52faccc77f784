"""Cron needs an extra, and is tested in virtual time."""

from collections.abc import Mapping

import pytest

from tests.support import LoopFactory, has
from tests.support_clock import VirtualClockLoop

collect_ignore_glob = [] if has("croniter") else ["test_*.py"]


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, LoopFactory]:
    """Run the coroutine tests of this folder in virtual time."""
    return {"virtual": VirtualClockLoop}
