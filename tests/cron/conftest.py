"""Cron needs an extra, and is tested in virtual time."""

from tests.support import has
from tests.support_clock import nothing_left_behind, pytest_asyncio_loop_factories

__all__ = ("nothing_left_behind", "pytest_asyncio_loop_factories")

collect_ignore_glob = [] if has("croniter") else ["test_*.py"]
