"""Fixtures that the tests of several modules share; their helpers live in ``tests/support.py``."""

import contextlib
import gc
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import trustme

from tests.support import LoopFactory, Program, loop_factories, nothing_left

# Without a deadline, because machines are busy; pytest-timeout limits the time of a test.
hypothesis.settings.register_profile("project", deadline=None, print_blob=True)
hypothesis.settings.load_profile("project")

# Python itself ignores SIGPIPE and SIGXFSZ, and Popen resets them.
INHERITED_SIGNALS = signal.valid_signals() - {
    *(signal.SIGKILL, signal.SIGSTOP, signal.SIGPIPE, signal.SIGXFSZ),
}
DEFAULT_HANDLERS: dict[int, Any] = {
    signal.SIGINT: signal.default_int_handler,
    # The tests survive the end of the terminal, but their subprocesses get the default action.
    signal.SIGHUP: lambda *_: None,
}


def pytest_configure(config: pytest.Config) -> None:
    """Set the signal handlers and the signal mask of a program at a terminal.

    Background jobs of scripts and some CI runners ignore SIGINT, and ``nohup`` ignores SIGHUP. The
    subprocesses of the tests would inherit that, and also the signals that the parent blocks.
    """
    if getattr(config.option, "numprocesses", None) and not hasattr(config, "workerinput"):
        return  # the controller of pytest-xdist runs no tests
    for number in INHERITED_SIGNALS:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, DEFAULT_HANDLERS.get(number, signal.SIG_DFL))
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def pytest_collection_finish() -> None:
    """Exclude the objects of pytest from the many garbage collections of the tests."""
    gc.collect()
    gc.freeze()


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, LoopFactory]:
    """Run a coroutine test on the default loop of svcrun, which is uvloop if it is installed.

    The tests of private names of asyncio run on each kind of loop.
    """
    if item.path.name == "test_eager.py":
        return loop_factories()
    name, factory = list(loop_factories().items())[-1]
    return {name: factory}


@pytest.fixture(params=list(loop_factories().values()), ids=list(loop_factories()))
def loop_factory(request: pytest.FixtureRequest) -> LoopFactory:
    """Each kind of event loop in turn, for a test that creates its own loop."""
    factory: LoopFactory = request.param
    return factory


@pytest.fixture
def run_program() -> Iterator[Callable[..., Program]]:
    """Start programs with the arguments of `tests.support.Program`; they end with the test."""
    with contextlib.ExitStack() as stack:
        yield lambda *args, **kwargs: stack.enter_context(Program(*args, **kwargs))


@pytest.fixture
def no_leaks() -> Iterator[None]:
    """Fail the test if it leaves descriptors, threads, signal or log handlers behind."""
    with nothing_left():
        yield


@dataclass(frozen=True)
class Certificates:
    """PEM files: an authority with a server's and a client's certificate, and a stranger.

    The names of the server and of the stranger are ``localhost``, ``127.0.0.1`` and ``::1``.
    """

    ca: Path
    server_cert: Path
    server_key: Path
    client_cert: Path
    client_key: Path
    other_ca: Path
    """The authority of the stranger's certificate."""
    stranger_cert: Path
    stranger_key: Path


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Certificates of the test session; tests must not change the files."""
    folder = tmp_path_factory.mktemp("certificates")
    ca, other_ca = trustme.CA(), trustme.CA()
    ca.cert_pem.write_to_path(folder / "ca.pem")
    other_ca.cert_pem.write_to_path(folder / "other-ca.pem")
    for issuer, name, identities in (
        (ca, "server", ["localhost", "127.0.0.1", "::1"]),
        (ca, "client", ["client@example.com"]),
        (other_ca, "stranger", ["localhost", "127.0.0.1", "::1"]),
    ):
        issued = issuer.issue_cert(*identities)
        for blob in issued.cert_chain_pems:
            blob.write_to_path(folder / f"{name}.pem", append=True)
        issued.private_key_pem.write_to_path(folder / f"{name}.key")
    return Certificates(
        ca=folder / "ca.pem",
        server_cert=folder / "server.pem",
        server_key=folder / "server.key",
        client_cert=folder / "client.pem",
        client_key=folder / "client.key",
        other_ca=folder / "other-ca.pem",
        stranger_cert=folder / "stranger.pem",
        stranger_key=folder / "stranger.key",
    )
