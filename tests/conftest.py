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

# A busy machine is no reason to fail: pytest-timeout bounds a test, hypothesis does not.
hypothesis.settings.register_profile("project", deadline=None, print_blob=True)
hypothesis.settings.load_profile("project")

# Python ignores the others itself, and Popen resets them.
INHERITED_SIGNALS = signal.valid_signals() - {
    *(signal.SIGKILL, signal.SIGSTOP, signal.SIGPIPE, signal.SIGXFSZ),
}
DEFAULT_HANDLERS: dict[int, Any] = {
    signal.SIGINT: signal.default_int_handler,
    # The tests survive the end of the terminal, but what they start gets the default action.
    signal.SIGHUP: lambda *_: None,
}


def pytest_configure(config: pytest.Config) -> None:
    """Start from the signals of a program at a terminal, whatever started the tests.

    A background job of a script, and some CI runners, ignore SIGINT; ``nohup`` ignores SIGHUP. That
    is inherited by each program that the tests start, and so is what the parent blocks.
    """
    if getattr(config.option, "numprocesses", None) and not hasattr(config, "workerinput"):
        return  # the process that leads the others runs no test
    for number in INHERITED_SIGNALS:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, DEFAULT_HANDLERS.get(number, signal.SIG_DFL))
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def pytest_collection_finish() -> None:
    """Leave pytest's own objects out of the many collections that tests ask for."""
    gc.collect()
    gc.freeze()


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, LoopFactory]:
    """Run a coroutine test on the loop that svcrun itself would choose: uvloop if installed.

    The tests of uses of asyncio's private names run on each kind of loop.
    """
    if item.path.name == "test_eager.py":
        return loop_factories()
    name, factory = list(loop_factories().items())[-1]
    return {name: factory}


@pytest.fixture(params=list(loop_factories().values()), ids=list(loop_factories()))
def loop_factory(request: pytest.FixtureRequest) -> LoopFactory:
    """Each kind of event loop in turn, for a test that makes its own loop."""
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
    """PEM files of an authority, of a server and a client that it vouches for, and of a stranger.

    The server's names are ``localhost``, ``127.0.0.1`` and ``::1``.
    """

    ca: Path
    server_cert: Path
    server_key: Path
    client_cert: Path
    client_key: Path
    other_ca: Path
    """Another authority, which vouches for the stranger alone."""
    stranger_cert: Path
    stranger_key: Path


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Certificates that last for the test session; do not change the files."""
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
