import asyncio
import functools
import logging
from typing import Any

import pytest

from svcrun.signal import Signal, receiver


def recorder(calls: list[str], name: str) -> Any:
    async def record() -> None:
        calls.append(name)

    return record


async def test_receivers_are_called_in_the_order_of_their_connection() -> None:
    calls: list[str] = []
    signal = Signal()
    names = [str(number) for number in range(20)]
    for name in names:
        signal.connect(recorder(calls, name))
    await signal.call()
    assert calls == names


async def test_receivers_get_the_arguments_of_the_call() -> None:
    received: list[Any] = []
    signal = Signal()

    @receiver(signal)
    async def receive(*args: Any, **kwargs: Any) -> None:
        received.append((args, kwargs))

    await signal.call(1, "two", three=3)
    assert received == [((1, "two"), {"three": 3})]


async def test_each_receiver_begins_when_the_one_before_has_finished() -> None:
    calls: list[str] = []
    signal = Signal()

    @receiver(signal)
    async def slow() -> None:
        calls.append("slow begins")
        await asyncio.sleep(0)
        calls.append("slow ends")

    signal.connect(recorder(calls, "next"))
    await signal.call()
    assert calls == ["slow begins", "slow ends", "next"]


class Listener:
    def __init__(self) -> None:
        self.calls = 0

    async def hear(self) -> None:
        self.calls += 1


async def test_a_receiver_connected_twice_is_called_once() -> None:
    signal, listener = Signal(), Listener()
    signal.connect(listener.hear)
    signal.connect(listener.hear)
    await signal.call()
    assert listener.calls == 1


async def test_a_disconnected_receiver_is_not_called() -> None:
    signal, listener = Signal(), Listener()
    signal.connect(listener.hear)
    signal.disconnect(listener.hear)
    signal.disconnect(listener.hear)
    await signal.call()
    assert listener.calls == 0


async def test_a_receiver_may_disconnect_itself_while_it_is_called() -> None:
    calls: list[str] = []
    signal = Signal()

    @receiver(signal)
    async def once() -> None:
        calls.append("once")
        signal.disconnect(once)

    signal.connect(recorder(calls, "always"))
    await signal.call()
    await signal.call()
    assert calls == ["once", "always", "always"]


class AsyncCallable:
    async def __call__(self) -> None: ...


@pytest.mark.parametrize(
    "function", [Listener().hear, AsyncCallable(), functools.partial(Listener().hear)]
)
async def test_callables_that_return_coroutines_are_accepted(function: Any) -> None:
    signal = Signal()
    signal.connect(function)
    await signal.call()


@pytest.mark.parametrize("error", [TypeError, RuntimeError])
@pytest.mark.parametrize("function", [None, max, Listener().calls])
def test_a_function_that_is_not_a_coroutine_function_is_refused_by_name(
    function: Any, error: type[Exception]
) -> None:
    signal = Signal()
    with pytest.raises(error, match="async def") as caught:
        signal.connect(function)
    assert repr(function) in str(caught.value)


def test_a_frozen_signal_refuses_changes_with_a_remedy() -> None:
    signal, listener = Signal(), Listener()
    signal.connect(listener.hear)
    signal.freeze()
    assert signal.is_frozen
    with pytest.raises(RuntimeError, match=r"can't connect .*Listener\.hear.* frozen.*copy\(\)"):
        signal.connect(listener.hear)
    with pytest.raises(RuntimeError, match=r"can't disconnect .*Listener\.hear"):
        signal.disconnect(listener.hear)


async def test_a_copy_of_a_signal_has_its_receivers_and_changes_independently() -> None:
    original, listener, other = Signal(), Listener(), Listener()
    original.connect(listener.hear)
    original.freeze()
    copy = original.copy()
    assert not copy.is_frozen
    copy.connect(other.hear)
    await original.call()
    assert (listener.calls, other.calls) == (1, 0)
    await copy.call()
    assert (listener.calls, other.calls) == (2, 1)


def failing(error: BaseException) -> Any:
    async def fail() -> None:
        raise error

    return fail


async def test_one_error_is_raised_unchanged_after_all_receivers_were_called() -> None:
    signal, listener, error = Signal(), Listener(), ZeroDivisionError()
    signal.connect(failing(error))
    signal.connect(listener.hear)
    with pytest.raises(ZeroDivisionError) as caught:
        await signal.call()
    assert caught.value is error
    assert listener.calls == 1


async def test_several_errors_of_receivers_are_raised_as_a_group() -> None:
    signal, listener = Signal(), Listener()
    errors = [ZeroDivisionError(), KeyError("key")]
    signal.connect(failing(errors[0]))
    signal.connect(listener.hear)
    signal.connect(failing(errors[1]))
    with pytest.raises(ExceptionGroup) as caught:
        await signal.call()
    assert list(caught.value.exceptions) == errors
    assert listener.calls == 1


async def test_a_cancellation_is_raised_at_once_and_earlier_errors_are_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    signal, listener, waiting = Signal(), Listener(), asyncio.Event()
    signal.connect(failing(ZeroDivisionError()))

    @receiver(signal)
    async def wait() -> None:
        waiting.set()
        await asyncio.get_running_loop().create_future()

    signal.connect(listener.hear)
    task = asyncio.create_task(signal.call())
    await waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert listener.calls == 0
    (record,) = (record for record in caplog.records if record.levelno == logging.ERROR)
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError


def test_the_decorator_returns_the_function_itself() -> None:
    async def function() -> None: ...

    assert receiver(Signal())(function) is function


def test_receiver_without_a_signal_raises_an_error_with_the_right_usage() -> None:
    async def function() -> None: ...

    with pytest.raises(TypeError, match=r"needs a Signal, not <function.*@receiver\("):
        receiver(function)  # type: ignore[arg-type]


def test_the_representation_of_a_signal_shows_receivers_and_whether_it_is_frozen() -> None:
    signal = Signal()
    signal.connect(Listener().hear)
    signal.freeze()
    assert repr(signal) == f"<Signal frozen receivers=[{__name__}.Listener.hear]>"
