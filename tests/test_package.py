"""The names that ``import svcrun`` provides, and the cost of the import (C1, C2)."""

import importlib
import inspect
import json
import operator
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import svcrun
import svcrun._util.hints
from tests.support import PATIENCE, STRICT

# The exported names, and the modules that define them.
NAMES = {
    "CURRENT_ENTRYPOINT": "svcrun.context_vars",
    "Context": "svcrun.context",
    "Entrypoint": "svcrun.entrypoint",
    "IteratorWrapper": "svcrun.thread_pool.generators",
    "IteratorWrapperSeparate": "svcrun.thread_pool.generators",
    "PeriodicCallback": "svcrun.periodic",
    "RecurringCallback": "svcrun.recurring",
    "Restart": "svcrun.restart",
    "SelectResult": "svcrun.utils",
    "Service": "svcrun.service.base",
    "ServiceState": "svcrun.state",
    "Signal": "svcrun.signal",
    "StrategyException": "svcrun.recurring",
    "StrategySkip": "svcrun.recurring",
    "StrategyStop": "svcrun.recurring",
    "StrictContextVar": "svcrun.context_vars",
    "ThreadPoolExecutor": "svcrun.thread_pool.executor",
    "__version__": "svcrun.version",
    "awaitable": "svcrun.utils",
    "bind_socket": "svcrun.sockets",
    "cancel_tasks": "svcrun.utils",
    "chunk_list": "svcrun.utils",
    "current_service": "svcrun._util.current_service",
    "entrypoint": "svcrun.entrypoint",
    "get_context": "svcrun.context",
    "parameter": "svcrun.service._meta",
    "plugins": "svcrun.plugins",
    "receiver": "svcrun.signal",
    "run": "svcrun.entrypoint",
    "select": "svcrun.utils",
    "shield": "svcrun.utils",
    "sync_await": "svcrun.thread_pool.from_thread",
    "sync_wait_coroutine": "svcrun.thread_pool.from_thread",
    "threaded": "svcrun.thread_pool.functions",
    "threaded_iterable": "svcrun.thread_pool.generators",
    "threaded_iterable_separate": "svcrun.thread_pool.generators",
    "threaded_separate": "svcrun.thread_pool.functions",
    "timeout": "svcrun.timeout",
    "version_info": "svcrun.version",
    "wait_coroutine": "svcrun.thread_pool.from_thread",
}

# The modules that have the same name as an object in them.
ECLIPSED = ("entrypoint", "timeout")

EXTRAS = (
    *("aiohttp", "aiohttp_asgi", "colorlog", "croniter", "logging_journald", "pythonjsonlogger"),
    *("raven", "rich", "sentry_sdk", "uvicorn", "uvloop"),
)


# The names that the modules behind an extra export, and the extra that each needs.
ADAPTERS = {
    "service.cron": ("croniter", "cron", ("CronService", "Upcoming", "cron")),
    "service.aiohttp": (
        "aiohttp",
        "aiohttp",
        ("AIOHTTPSSLService", "AIOHTTPService", "AccessLogger", "Runner"),
    ),
    "service.asgi": (
        "aiohttp-asgi",
        "asgi",
        (
            *("ASGIApplicationType", "ASGIHTTPSSLService", "ASGIHTTPService"),
            *("ASGIReceiveType", "ASGIScopeType", "ASGISendType"),
        ),
    ),
    "service.raven": ("raven", "raven", ("RavenSender",)),
    "service.sentry": ("sentry-sdk", "sentry", ("SentrySender",)),
    "service.uvicorn": ("uvicorn", "uvicorn", ("UvicornApplication", "UvicornService")),
}


@pytest.fixture(scope="session")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with svcrun and nothing else."""
    folder = tmp_path_factory.mktemp("alone")
    assert svcrun.__file__ is not None
    (folder / "svcrun").symlink_to(Path(svcrun.__file__).parent)
    return folder


Evaluate = Callable[[str], Any]


@pytest.fixture
def evaluate(alone: Path) -> Evaluate:
    """Run a program with nothing but the standard library and svcrun; return its `result`."""

    def run(program: str) -> Any:
        path = f"import sys; sys.path.append({str(alone)!r})"
        code = f"{path}\n{program}\nimport json; print(json.dumps(result))"
        done = subprocess.run(
            [sys.executable, *STRICT, "-I", "-S", "-c", code],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert not done.stderr
        return json.loads(done.stdout)

    return run


def loaded(*modules: str) -> str:
    """Return the statement that finds out which of `modules` are loaded."""
    return f"result = [m for m in {modules!r} if m in sys.modules]"


def test_the_package_exports_the_documented_names() -> None:
    assert sorted(svcrun.__all__) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_each_exported_name_is_the_object_of_its_module(name: str) -> None:
    value = getattr(svcrun, name)
    assert value is getattr(importlib.import_module(NAMES[name]), name)


# Names, order and defaults of parameters; None: the environment may set it.
SIGNATURES = {
    "run": "(coro, *services, **kwargs)",
    "entrypoint": "(*services, loop=None, pool_size=None, log_level=None, log_format=None, "
    "log_buffering=None, log_buffer_size=None, log_date_format=None, log_flush_interval=None, "
    "log_config=None, log_handlers=(), loop_factory=None, debug=None, catch_signals=None, "
    "shutdown_timeout=None, start_timeout=None, start_retry=None, log_buffer_limit=None, "
    "drain_delay=None)",
    "entrypoint.start_services": "(self, *services)",
    "entrypoint.stop_services": "(self, *services, exc=None)",
    "entrypoint.graceful_shutdown": "(self, exception=None)",
    "entrypoint.closing": "(self)",
    "entrypoint.get_current": "()",
    "Service.start": "(self)",
    "Service.stop": "(self, exception=None)",
    "Service.set_loop": "(self, loop)",
    "bind_socket": "(*args, address, port=0, options=(), reuse_addr=True, reuse_port=False, "
    "proto_name=None)",
    "select": "(*awaitables, return_exceptions=False, cancel=True, timeout=None, wait=True, "
    "loop=None)",
    "get_context": "(loop=None)",
    "timeout": "(value)",
    "awaitable": "(func)",
    "shield": "(func)",
    "cancel_tasks": "(tasks)",
    "receiver": "(s)",
    "service.TCPServer": "(address=None, port=None, options=(), sock=None, **kwargs)",
    "service.UDPServer": "(address=None, port=None, options=(), sock=None, **kwargs)",
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_the_parameters_have_their_documented_names_order_and_defaults(name: str) -> None:
    signature = inspect.signature(operator.attrgetter(name)(svcrun))
    bare = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for parameter in signature.parameters.values()
    ]
    assert str(inspect.Signature(bare)) == SIGNATURES[name]


@pytest.mark.parametrize("module", ADAPTERS)
def test_the_modules_behind_an_extra_export_these_names(module: str) -> None:
    library, _, names = ADAPTERS[module]
    pytest.importorskip(library.replace("-", "_"))
    assert sorted(importlib.import_module(f"svcrun.{module}").__all__) == sorted(names)


@pytest.mark.parametrize("module", ADAPTERS)
def test_the_error_of_a_module_without_its_extra_names_the_extra_to_install(
    evaluate: Evaluate, module: str
) -> None:
    library, extra, _ = ADAPTERS[module]
    program = f"try: import svcrun.{module}\nexcept ImportError as error: result = str(error)"
    assert evaluate(program) == f"svcrun.{module} needs {library}: pip install 'svcrun[{extra}]'"


# Names and order of positional parameters, as in aiomisc, and the defaults.
WEB = {
    "AIOHTTPService": {
        "address": "localhost",
        "port": None,
        "sock": None,
        "shutdown_timeout": 5,
        "handler_cancellation": True,
        "runner_kwargs": None,
    },
    "AIOHTTPSSLService": {
        "cert": None,
        "key": None,
        "ca": None,
        "address": "localhost",
        "port": None,
        "verify": True,
        "sock": None,
        "shutdown_timeout": 5,
        "require_client_cert": False,
    },
}


@pytest.mark.parametrize("name", WEB)
@pytest.mark.parametrize("kind", ["aiohttp", "asgi"])
def test_the_web_services_have_the_documented_parameters(kind: str, name: str) -> None:
    pytest.importorskip("aiohttp" if kind == "aiohttp" else "aiohttp_asgi")
    module = importlib.import_module(f"svcrun.service.{kind}")
    cls = getattr(module, name if kind == "aiohttp" else name.replace("AIO", "ASGI"))
    assert [*inspect.signature(cls).parameters] == [*WEB[name], "kwargs"]
    defaults = {parameter: getattr(cls, parameter, None) for parameter in WEB[name]}
    assert defaults == WEB[name]


def test_an_entrypoint_has_the_documented_attributes() -> None:
    for name in ("PRE_START", "POST_START", "PRE_STOP", "POST_STOP"):
        assert isinstance(getattr(svcrun.entrypoint, name), svcrun.Signal)
    with svcrun.entrypoint(log_config=False) as loop:
        ep = svcrun.entrypoint.get_current()
        assert (ep.loop, ep.services) == (loop, ())
        assert isinstance(ep.ctx, svcrun.Context)
        for name in ("pre_start", "post_start", "pre_stop", "post_stop"):
            assert isinstance(getattr(ep, name), svcrun.Signal)


def test_a_service_has_the_documented_attributes() -> None:
    service = svcrun.service.TaskStoreBase
    assert isinstance(service, svcrun.service.ServiceMeta)
    for name in ("loop", "start_event", "context", "state", "create_task"):
        assert hasattr(service, name)
    assert set(service.__async_required__) == {"start", "stop"}
    assert service.__required__ == frozenset()


def test_all_names_are_listed_without_being_loaded(evaluate: Evaluate) -> None:
    listed = evaluate("import svcrun; result = dir(svcrun)")
    assert set(listed) >= {*NAMES, "log", "service"}
    query = loaded("svcrun.entrypoint", "svcrun.service")
    assert not evaluate(f"import svcrun; dir(svcrun); {query}")


def test_a_star_import_gives_just_the_exported_names(evaluate: Evaluate) -> None:
    given = evaluate("from svcrun import *; result = [n for n in globals() if n[:2] != '__']")
    assert set(given) - {"sys"} == {name for name in NAMES if name[:2] != "__"}


def test_an_unknown_name_is_an_attribute_error_that_names_it() -> None:
    with pytest.raises(AttributeError, match="'svcrun' has no attribute 'nonsense'"):
        _ = svcrun.nonsense  # type: ignore[attr-defined]
    with pytest.raises(ImportError, match="nonsense"):
        exec("from svcrun import nonsense")  # noqa: S102 - linters refuse the statement itself


@pytest.mark.parametrize("name", ECLIPSED)
@pytest.mark.parametrize(
    "before",
    [
        "",
        "import svcrun.{name}",
        "from svcrun.{name} import {name}",
        "import importlib; importlib.import_module('svcrun.{name}')",
        "import svcrun.service.base, svcrun._runtime.runtime, svcrun.utils, svcrun.timeout",
        "import svcrun; svcrun.{name}; import svcrun.{name}",
        "import svcrun.{name}, sys, importlib; importlib.reload(sys.modules['svcrun.{name}'])",
    ],
)
def test_an_exported_name_is_the_object_and_never_the_module_of_the_same_name(
    evaluate: Evaluate, before: str, name: str
) -> None:
    program = f"{before.format(name=name)}\nfrom svcrun import {name}\nresult = str(type({name}))"
    assert "module" not in evaluate(program)


def test_the_module_behind_a_name_can_be_imported_from(evaluate: Evaluate) -> None:
    assert evaluate(
        "from svcrun.entrypoint import Entrypoint, entrypoint, run\n"
        "import svcrun.entrypoint\n"
        "result = Entrypoint is entrypoint is svcrun.entrypoint and run is svcrun.run"
    )


@pytest.mark.parametrize("module", ["log", "service"])
def test_some_submodules_are_attributes_of_the_package_without_an_import(
    evaluate: Evaluate, module: str
) -> None:
    assert evaluate(f"import svcrun; result = svcrun.{module}.__name__") == f"svcrun.{module}"


def test_the_documented_modules_can_be_imported(evaluate: Evaluate) -> None:
    names = [
        *("entrypoint", "signal", "context", "thread_pool", "timeout", "utils", "log", "version"),
        *("service", "service.base", "service.tcp", "service.tls", "service.udp"),
    ]
    modules = ", ".join(f"svcrun.{name}" for name in names)
    assert evaluate(f"import {modules}; result = True")


# The cost of importing.


def test_importing_the_package_loads_nothing_of_weight(evaluate: Evaluate) -> None:
    heavy = ("asyncio", "logging", "typing", "inspect", "svcrun.entrypoint", "svcrun.service")
    assert not evaluate(f"import svcrun; {loaded(*heavy)}")


def test_the_usual_imports_load_nothing_besides_asyncio_and_logging(
    evaluate: Evaluate,
) -> None:
    everything = "result = list(sys.modules)"
    base = set(evaluate(f"import asyncio, logging; {everything}"))
    ours = set(evaluate(f"from svcrun import entrypoint, Service; {everything}"))
    assert {name for name in ours - base if not name.startswith("svcrun")} == {"__future__"}


def test_nothing_that_a_small_program_loads_imports_typing(evaluate: Evaluate) -> None:
    """asyncio loads it before Python 3.14, and hides there what a later one would have to pay."""
    program = """
import svcrun.log, sys
from svcrun import Service, entrypoint
class Small(Service):
    async def start(self): ...
with entrypoint(Small()): pass
result = [it.__file__ for name, it in sys.modules.items() if name.startswith("svcrun.")]
"""
    files = {Path(name) for name in evaluate(program)}
    assert len(files) > 20
    for path in files - {Path(svcrun._util.hints.__file__)}:
        imports = re.findall(r"^(?:from|import) +typing\b.*", path.read_text(), re.MULTILINE)
        assert not imports, f"{path}: import them from svcrun._util.hints"


@pytest.mark.parametrize("before", ["", "import typing; "])
def test_a_generic_class_can_be_parametrized_whether_or_not_typing_is_loaded(
    before: str, evaluate: Evaluate
) -> None:
    code = f"{before}from svcrun._util.per_loop import PerLoop; result = PerLoop[int]().get(None)"
    assert evaluate(code) is None


def test_nothing_of_the_core_loads_an_extra() -> None:
    """Here they are installed, all or some."""
    code = f"""
import sys
from svcrun import *
from svcrun.service import *
import svcrun._runtime.runtime, svcrun.log, svcrun.thread_pool
{loaded(*EXTRAS)}
print(result)
"""
    done = subprocess.run(
        [sys.executable, *STRICT, "-c", code],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize(
    ("module", "libraries"),
    [("aiohttp", {"aiohttp"}), ("asgi", {"aiohttp", "aiohttp_asgi"}), ("uvicorn", {"uvicorn"})],
)
def test_a_web_service_loads_no_library_but_its_own(module: str, libraries: set[str]) -> None:
    for library in libraries:
        pytest.importorskip(library)
    others = [name for name in (*EXTRAS, "fastapi", "starlette") if name not in libraries]
    code = f"import sys, svcrun.service.{module}\n{loaded(*others)}\nprint(result)"
    done = subprocess.run(
        [sys.executable, *STRICT, "-c", code],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_the_core_runs_without_any_extra(evaluate: Evaluate) -> None:
    assert (
        evaluate("""
from svcrun import *


class Hello(Service):
    async def start(self):
        pass


async def main():
    return await threaded(int)()


result = run(main(), Hello(), debug=True, log_level="error")  # not "took 0.1 seconds"
""")
        == 0
    )
