"""Each base class works with any attribute names of its subclasses (C3a)."""

from __future__ import annotations

import asyncio
import logging
import re
import ssl
from typing import TYPE_CHECKING, Any

import pytest

from svcrun import entrypoint
from tests.service.bases import BASES, find_base, keywords_of
from tests.support import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Certificates

# Names that are likely in services, and former private names of the bases.
TEXT = """
    app_state application bind buffer callbacks certificates check client clients close closing
    connection connections context courier crew data dropped dump end endpoint error errors
    event forget graph group handle handler handlers is_running jobs lag lines listener
    listening loop outbox parts periodic place profile profiler progress record recording report
    reporting run runner running sampler secure sent server servers services show site snapshot
    socket ssl_context start_event started state status stop_takes_exception stopped stopping
    stops task task_name tasks thread tracer transport undo unsent watch write writer _app _bind
    _call _check _check_filters _check_options _check_parameters _client _close _close_listener
    _configured _connection_factory _connections _context _courier _crashes _crew _dismiss
    _dropped _dump _end _end_connections _end_handlers _endpoint _failures _find_dsn _forget
    _go_on _graceful_tasks _graph _group _handler _has_reported _interrupted _is_asked_to_stop
    _is_calling _is_serving _is_starting _is_tracing _jobs _keywords _leave _levels _listener
    _loop _make_config _make_endpoint _make_handler _make_options _make_server _on_end _outbox
    _own _parse_dsn _progress _read_certificates _record _recording _report _restore_levels
    _runner _runner_class _runner_kwargs _sampler _secure _server _set_levels _show _site
    _socket _snapshot_on_start _start_event _start_job _starting _state _still_working _stopped
    _stopping _stops _stops_last _task _tasks _tracer _transport _unbind _undelivered _undo
    _unsent _until _watch _write
"""
NAMES = TEXT.split()

SERVERS = {"tcp", "tls", "aiohttp", "asgi", "uvicorn"}


class Own:
    """A mixin with the methods that the bases require."""

    async def callback(self) -> None: ...

    async def handle_client(self, reader: Any, writer: Any) -> None:
        await reader.readline()
        writer.write(b"HTTP/1.1 served\r\n")

    async def handle_datagram(self, data: bytes, addr: Any) -> None: ...


def subclass(found: Any, **namespace: Any) -> Any:
    if "start" in found.__abstractmethods__:

        async def start(self: Any) -> None: ...

        namespace["start"] = start
    return type(found)("Subclass", (Own, found), namespace)


def names_for(found: Any) -> list[str]:
    """Return the names that are not refused: uvicorn's `loop` is the name of a kind of loop."""
    return [n for n in NAMES if n != "loop" or found.__name__ != "UvicornService"]


def by_class(found: Any, keywords: dict[str, Any]) -> Any:
    return subclass(found, **dict.fromkeys(names_for(found), "own"))(**keywords)


def by_method(found: Any, keywords: dict[str, Any]) -> Any:
    return subclass(found, **dict.fromkeys(NAMES, lambda self: "own"))(**keywords)


def by_property(found: Any, keywords: dict[str, Any]) -> Any:
    return subclass(found, **dict.fromkeys(NAMES, property(lambda self: "own")))(**keywords)


def by_keyword(found: Any, keywords: dict[str, Any]) -> Any:
    return subclass(found)(**keywords, **dict.fromkeys(names_for(found), "own"))


def before_init(found: Any, keywords: dict[str, Any]) -> Any:
    def init(self: Any, **given: Any) -> None:
        vars(self).update(dict.fromkeys(NAMES, "own"))
        found.__init__(self, **given)

    return subclass(found, __init__=init)(**keywords)


def after_init(found: Any, keywords: dict[str, Any]) -> Any:
    service = subclass(found)(**keywords)
    for name in NAMES:
        setattr(service, name, "own")
    return service


def in_start(found: Any, keywords: dict[str, Any]) -> Any:
    cls = subclass(found)

    class Starting(cls):  # type: ignore[misc, valid-type]
        async def start(self) -> Any:
            for name in NAMES:
                setattr(self, name, "own")
            return await super().start()

    return Starting(**keywords)


def after_start(found: Any, keywords: dict[str, Any]) -> Any:
    cls = subclass(found)

    class Starting(cls):  # type: ignore[misc, valid-type]
        async def start(self) -> Any:
            started = await super().start()
            for name in NAMES:
                setattr(self, name, "own")
            return started

    return Starting(**keywords)


def without_init(found: Any, keywords: dict[str, Any]) -> Any:
    def init(self: Any) -> None:
        for name, value in keywords.items():
            setattr(self, name, value)

    return subclass(found, __init__=init)()


WAYS: tuple[Callable[[Any, dict[str, Any]], Any], ...] = (
    by_class,
    by_method,
    by_property,
    by_keyword,
    before_init,
    after_init,
    in_start,
    after_start,
    without_init,
)


async def ask(service: Any, context: ssl.SSLContext | None) -> bytes:
    name = None if context is None else "localhost"
    async with asyncio.timeout(PATIENCE):
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", service.port, ssl=context, server_hostname=name
        )
        writer.write(b"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
        answer = await reader.readline()
        writer.close()
        return answer


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("base", BASES)
async def test_a_subclass_with_any_attribute_names_starts_serves_and_stops_twice(
    base: str,
    way: Callable[[Any, dict[str, Any]], Any],
    certificates: Certificates,
    caplog: pytest.LogCaptureFixture,
) -> None:
    found = find_base(base)
    service = way(found, keywords_of(base, certificates))
    is_server = base.partition(":")[0] in SERVERS
    is_tls = base.endswith(("SSLService", "TLSServer"))
    context = ssl.create_default_context(cafile=certificates.ca) if is_tls else None
    for _ in range(2):
        async with entrypoint(service, log_config=False, start_timeout=PATIENCE):
            assert re.fullmatch(r"<.+ RUNNING>", repr(service))
            if is_server:
                assert (await ask(service, context)).startswith(b"HTTP/1.1 ")
        assert re.fullmatch(r"<.+ STOPPED>", repr(service))
    if way not in {without_init, by_method}:
        assert {getattr(service, name) for name in names_for(found)} == {"own"}
    errors = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert [r.getMessage() for r in errors if "did you mean" not in r.getMessage()] == []


def test_no_base_has_a_private_name_that_a_subclass_could_hit() -> None:
    for base in BASES:
        found = find_base(base)
        for cls in found.__mro__[:-1]:
            if not cls.__module__.startswith("svcrun."):
                continue
            mangled = f"_{cls.__name__.lstrip('_')}__"
            for name in vars(cls):
                if name.startswith("_") and not name.startswith("__"):
                    assert name.startswith(("_svcrun_", "_abc_", mangled)), (cls, name)


@pytest.mark.parametrize("base", BASES)
def test_private_names_of_a_class_with_the_name_of_its_base_are_refused_if_that_has_them(
    base: str,
) -> None:
    found = find_base(base)
    own = [name for name in vars(found) if name.startswith(f"_{found.__name__}__")]
    for name in own:
        with pytest.raises(TypeError, match=r"is reserved for svcrun\.service\."):
            type(found)(found.__name__, (Own, found), {name: "own"})
        type(found)("Other", (Own, found), {name.replace(found.__name__, "Other"): "own"})
