"""The private names of asyncio that svcrun uses exist on each version of Python.

Some are read with a default: without them, speed or a detail would be lost in silence. The page
about the architecture lists them.
"""

import asyncio
import contextvars
import inspect
import re
import socket
import sys
from collections.abc import Mapping

import pytest

from svcrun._net import listener as _accept
from svcrun._util.loop_internals import current_loop, wakeup_descriptor
from svcrun._util.tasks import CALLBACK_CODE, _context_of_callback
from tests.private_names import find_private_names
from tests.support import ROOT

older = pytest.mark.skipif(sys.version_info >= (3, 12), reason="public since Python 3.12")


@older
def test_the_current_task_of_a_loop_can_be_exchanged() -> None:
    for name in ("_enter_task", "_leave_task"):
        assert hasattr(asyncio.tasks, name)


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="public since Python 3.14")
def test_an_event_loop_policy_returns_the_set_loop() -> None:
    loop = asyncio.SelectorEventLoop()
    before = current_loop()
    asyncio.set_event_loop(loop)
    try:
        assert current_loop() is loop
    finally:
        asyncio.set_event_loop(before)
        loop.close()


async def run_on_the_stock_loop() -> None:
    loop = asyncio.get_running_loop()

    # A loop wakes itself by a descriptor
    descriptor = wakeup_descriptor(loop)
    assert descriptor is not None
    assert descriptor >= 0

    # It makes a transport of an accepted socket
    with socket.create_server(("127.0.0.1", 0)) as sock:
        sock.setblocking(False)
        server = await _accept.listen(loop, sock, asyncio.Protocol, 1)
        assert isinstance(server, _accept.Listener)
        server.close()

    # All its calls are made in one function, whose frame leads to the context
    variable = contextvars.ContextVar[str]("variable")
    context = contextvars.copy_context()
    context.run(variable.set, "found")
    seen = []
    frame = sys._getframe

    def look() -> None:
        found = _context_of_callback(frame())
        seen.append(None if found is None else found.get(variable))

    loop.call_soon(look, context=context)
    await asyncio.sleep(0)
    assert seen == ["found"]
    assert CALLBACK_CODE is asyncio.Handle._run.__code__
    assert hasattr(loop, "_process_self_data")


def test_the_stock_loop_has_the_private_names_in_use() -> None:
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop, debug=False) as runner:
        runner.run(run_on_the_stock_loop())


async def test_a_task_names_the_tasks_that_wait_for_it() -> None:
    end = asyncio.Event()
    task = asyncio.create_task(end.wait())
    await asyncio.sleep(0)
    assert not task._callbacks
    waiting = asyncio.ensure_future(asyncio.wait({task}))
    await asyncio.sleep(0)
    assert task._callbacks
    end.set()
    await waiting


async def test_the_private_names_of_aiohttp_exist_and_no_others_are_used() -> None:
    pytest.importorskip("aiohttp_asgi")
    from aiohttp import web

    from svcrun._web.aiohttp import connection, server, site
    from svcrun._web.asgi import resource, response

    async def handle(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response()

    # Attributes of the instances, which their classes do not show.
    shown: dict[type, set[str]] = {
        web.Server: {*vars(web.Server(handle))},
        web.StreamResponse: {*vars(web.StreamResponse())},
    }
    used = set()
    for module in (connection, server, site, resource, response):
        classes = [one for one in vars(module).values() if inspect.isclass(one)]
        for cls in (one for one in classes if one.__module__ == module.__name__):
            bases = [one for one in cls.__mro__ if one.__module__.startswith("aiohttp")]
            names = {name for base in bases for name in {*vars(base), *shown.get(base, ())}}
            source = inspect.getsource(cls)
            used |= names & set(re.findall(r"\b_[a-z]\w*", source))
    assert used == {
        "_kwargs",
        "_messages",
        "_prepare_hook",
        "_waiter",
    }
    app = web.Application()
    assert hasattr(app, "_subapps")
    assert hasattr(app.cleanup_ctx, "_exits")


def test_each_private_name_is_used_by_one_adapter() -> None:
    for name, modules in find().items():
        assert len(modules) == 1, f"{name} is used by {sorted(modules)}"


def test_the_manual_lists_the_private_names_in_use() -> None:
    by_module: dict[str, list[str]] = {}
    for name, modules in sorted(find().items()):
        for module in modules:
            by_module.setdefault(module.removeprefix("svcrun."), []).append(f"``{name}``")
    expected = "".join(
        f"- ``{module}``: {', '.join(names)}\n" for module, names in sorted(by_module.items())
    )
    manual = (ROOT / "docs/explanation/architecture.rst").read_text(encoding="utf-8")
    section = re.split(r"\n[^\n]+\n-{4,}\n", manual.partition("\nPrivate names in use\n----")[2])[0]
    listed = "".join(
        line + "\n"
        for line in re.sub(r"\n  +", " ", section).splitlines()
        if line.startswith("- ``")
    )
    assert listed == expected


def find() -> Mapping[str, set[str]]:
    """Return the private names in use, in an environment with all libraries."""
    for library in ("aiohttp", "aiohttp_asgi", "croniter", "raven", "sentry_sdk", "uvicorn"):
        pytest.importorskip(library)
    for library in ("colorlog", "logging_journald", "pyinstrument", "pythonjsonlogger", "rich"):
        pytest.importorskip(library)
    return find_private_names()
