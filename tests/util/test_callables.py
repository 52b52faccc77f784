import functools
import inspect
import sys
from typing import Any
from unittest import mock

import pytest

from svcrun._util.callables import describe, is_coroutine_function


async def function() -> None: ...


class Methods:
    async def method(self) -> None: ...

    @classmethod
    async def class_method(cls) -> None: ...

    @staticmethod
    async def static_method() -> None: ...

    async def __call__(self) -> None: ...


class Plain:
    def __call__(self) -> None: ...


@pytest.mark.parametrize(
    "callable_",
    [
        function,
        Methods().method,
        Methods.class_method,
        Methods.static_method,
        Methods(),
        functools.partial(function),
        functools.partial(functools.partial(Methods().method)),
        functools.partial(Methods()),
        mock.AsyncMock(),
    ],
)
def test_a_callable_that_returns_a_coroutine_is_a_coroutine_function(callable_: Any) -> None:
    assert is_coroutine_function(callable_)


async def generator() -> Any:
    yield


@pytest.mark.parametrize(
    "callable_",
    [None, 1, print, lambda: None, functools.partial(print), Plain(), Plain, Methods, generator],
)
def test_other_callables_are_no_coroutine_functions(callable_: Any) -> None:
    assert not is_coroutine_function(callable_)


if sys.version_info >= (3, 12):

    def test_a_function_marked_as_a_coroutine_function_is_one() -> None:
        def marked() -> Any:
            return function()

        inspect.markcoroutinefunction(marked)
        assert is_coroutine_function(marked)
        assert is_coroutine_function(functools.partial(marked))


def test_a_function_is_described_by_its_full_name_and_an_object_by_its_representation() -> None:
    assert describe(function) == f"{__name__}.function"
    assert describe(Methods().method) == f"{__name__}.Methods.method"
    assert describe(print) == "builtins.print"
    assert describe(12) == "12"
