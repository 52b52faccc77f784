"""TLS echo: the cost of a round trip, and the throughput."""

import contextlib
import functools
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from benchmarks.cases import Budget, Case, Job, Metric, Sample, Target, Unavailable
from benchmarks.processes import program
from benchmarks.targets.traffic import connections, cost

LIMIT = 1.0
CONNECTIONS = (1, 64, 512)
TRIPS = 1_024


@functools.cache
def folder() -> tempfile.TemporaryDirectory[str]:
    """Create a folder with a certificate, which lasts as long as this process."""
    openssl = shutil.which("openssl")
    if openssl is None:
        raise Unavailable("a certificate is made by the program openssl, which is not there")
    made = tempfile.TemporaryDirectory(prefix="svcrun-benchmark-")
    command = [
        *(openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
        *("-nodes", "-days", "1", "-subj", "/CN=localhost"),
        *("-keyout", f"{made.name}/key.pem", "-out", f"{made.name}/cert.pem"),
    ]
    subprocess.run(command, check=True, capture_output=True)
    return made


def cases(budget: Budget) -> Sequence[Case]:
    folder()  # or it raises Unavailable
    jobs = [
        Job(
            number,
            [
                Metric(f"readline, write; {connections(number)}", LIMIT),
                Metric(f"time of a round trip; {connections(number)}", LIMIT, key="elapsed"),
            ],
            turns=9,
        )
        for number in CONNECTIONS
    ]
    return [
        Case("tls", loop, {s: partial(start, budget, s, loop) for s in budget.sides()}, jobs)
        for loop in budget.loops
    ]


@contextlib.contextmanager
def start(budget: Budget, side: str, loop: str) -> Iterator[Sample]:
    with (
        program(
            budget.python,
            "stream_server",
            side=side,
            loop=loop,
            handlers=["lines"],
            certificate={name: f"{folder().name}/{name}.pem" for name in ("cert", "key")},
        ) as server,
        program(budget.python, "echo_client", tls=True) as client,
    ):
        (port,) = server.answer()

        def sample(number: int) -> Mapping[str, float]:
            waves = budget.amount(TRIPS // number)
            client.ask((port, number, 1))  # connects, where it is not connected yet
            return cost(server, client, (port, number, waves), waves * number)

        yield sample


TARGET = Target(
    "tls",
    "The same round trips over TLS 1.3, the handshakes not included: the server's processor time,\n"
    "and the time until all answers are there, which is the inverse of the throughput.\n"
    "baseline: asyncio.start_server(ssl=...) with the same handler",
    cases,
)
