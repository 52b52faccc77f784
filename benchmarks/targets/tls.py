"""TLS echo: what a round trip costs the server."""

import functools
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from benchmarks.cases import Budget, Case, Metric, Target, Unavailable
from benchmarks.processes import program
from benchmarks.targets.traffic import cost

LIMIT = 0.95
CONNECTIONS = (1, 64)
TRIPS = 4_000


@functools.cache
def folder() -> tempfile.TemporaryDirectory[str]:
    """Make a folder with a certificate that lasts as long as this process."""
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
    files = Path(folder().name)
    certificate = {"cert": str(files / "cert.pem"), "key": str(files / "key.pem")}
    metrics = [
        Metric(str(number), f"lines, {number} connection{'s' * (number > 1)}", LIMIT)
        for number in CONNECTIONS
    ]
    return [
        Case(
            "tls",
            loop,
            {side: partial(measure, budget, side, loop, certificate) for side in budget.sides()},
            metrics,
        )
        for loop in budget.loops
    ]


def measure(budget: Budget, side: str, loop: str, certificate: dict[str, str]) -> dict[str, float]:
    trips = budget.repeats(TRIPS, least=100)
    found = {}
    with program(
        budget.python,
        "stream_server",
        side=side,
        loop=loop,
        handler="lines",
        certificate=certificate,
    ) as server:
        port = server.answer()["port"]
        for number in CONNECTIONS:
            client = program(
                budget.python, "echo_client", port=port, connections=number, trips=trips, tls=True
            )
            found[str(number)] = cost(server, client, trips)
    return found


TARGET = Target(
    "tls",
    "The same round trips over TLS 1.3, the handshakes not included.\n"
    "baseline: asyncio.start_server(ssl=...) with the same handler",
    cases,
)
