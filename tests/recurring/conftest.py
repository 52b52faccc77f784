"""The tests of recurring calls run in virtual time."""

from tests.support_clock import nothing_left_behind, pytest_asyncio_loop_factories

__all__ = ("nothing_left_behind", "pytest_asyncio_loop_factories")
