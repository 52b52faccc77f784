"""HTTP: the cost of a request."""

import contextlib
import http.client
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from benchmarks.cases import (
    BASELINE,
    SVCRUN,
    Budget,
    Case,
    Job,
    Metric,
    Sample,
    Target,
    Unavailable,
)
from benchmarks.processes import evaluate, program

TURNS = 5
CONNECTIONS = 32
WARM_UP = 300  # requests


@dataclass(frozen=True)
class Server:
    """A kind of server, see ``programs.web_server``.

    :param name: its name.
    :param needs: the libraries that it needs.
    :param access_log: whether it has an access log, on stderr, which is a file.
    """

    name: str
    needs: frozenset[str]
    access_log: bool = False


AIOHTTP = Server("aiohttp", frozenset({"aiohttp"}))
AIOHTTP_ASGI = Server("aiohttp_asgi", frozenset({"aiohttp_asgi"}))
UVICORN = Server("uvicorn", frozenset({"uvicorn"}))

AIOHTTP_SERVICE = Server("AIOHTTPService", AIOHTTP.needs)
ASGI_SERVICE = Server("ASGIHTTPService", AIOHTTP_ASGI.needs)
UVICORN_SERVICE = Server("UvicornService", UVICORN.needs | {"svcrun.service.uvicorn"})


@dataclass(frozen=True)
class Comparison:
    """A line of the table."""

    name: str
    limit: float
    baseline: Server
    svcrun: Server
    also: Mapping[str, Server] = field(default_factory=dict)

    @property
    def servers(self) -> Iterator[Server]:
        """All sides."""
        yield from (self.baseline, self.svcrun, *self.also.values())


COMPARISONS = (
    Comparison("AIOHTTPService", 1.03, AIOHTTP, AIOHTTP_SERVICE),
    Comparison(
        "AIOHTTPService with access log",
        1.30,
        AIOHTTP_SERVICE,
        replace(AIOHTTP_SERVICE, access_log=True),
        {"aiohttp": replace(AIOHTTP, access_log=True)},
    ),
    Comparison(
        "ASGIHTTPService",
        1.30,
        AIOHTTP,
        ASGI_SERVICE,
        {"aiohttp_asgi": AIOHTTP_ASGI, "uvicorn": UVICORN},
    ),
    Comparison("UvicornService", 1.03, UVICORN, UVICORN_SERVICE),
)


def cases(budget: Budget) -> Iterator[Case]:
    if shutil.which("wrk") is None:
        raise Unavailable("the load is made by the program wrk, which is not there: install wrk")
    needed = {
        module for compared in COMPARISONS for one in compared.servers for module in one.needs
    }
    with program(budget.python, "about", libraries=sorted(needed)) as about:
        there = frozenset(about.answer()["libraries"])
    missing: set[str] = set()
    for compared in COMPARISONS:
        sides = {BASELINE: compared.baseline, SVCRUN: compared.svcrun}
        absent = frozenset().union(*(one.needs for one in sides.values())) - there
        if absent:
            missing |= absent
            continue
        also = ((side, compared.also[side]) for side in budget.also if side in compared.also)
        sides |= {side: one for side, one in also if one.needs <= there}
        job = Job(None, [Metric(compared.name, compared.limit)], budget.amount(TURNS))
        for loop in budget.loops:
            starts = {side: partial(start, budget, one, loop) for side, one in sides.items()}
            yield Case("http", loop, starts, [job])
    if missing:
        raise Unavailable(f"not installed: {', '.join(sorted(missing))}")


@contextlib.contextmanager
def start(budget: Budget, server: Server, loop: str) -> Iterator[Sample]:
    with program(
        budget.python, "web_server", server=server.name, loop=loop, access_log=server.access_log
    ) as serving:
        port = serving.answer()
        warm_up(port)
        serving.ask("flush")

        def sample(_: None) -> Mapping[str, float]:
            before = serving.cpu_time()
            requests = load(port)
            serving.ask("flush")
            return {"cost": (serving.cpu_time() - before) / requests}

        yield sample


def warm_up(port: int) -> None:
    """Send some requests one after the other, and check the responses."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port)) as client:
        for _ in range(WARM_UP):
            client.request("GET", "/")
            response = client.getresponse()
            text = response.read()
            if (response.status, text) != (200, b"hello world"):
                raise RuntimeError(f"a server answered {response.status} {text!r}")


def load(port: int) -> int:
    """Keep a server busy for a second, and return the number of its responses."""
    url = f"http://127.0.0.1:{port}/"
    said = evaluate(["wrk", "-t1", f"-c{CONNECTIONS}", "-d1s", url])
    done = re.search(r"(\d+) requests in", said)
    if done is None or done[1] == "0" or "Non-2xx" in said or "Socket errors" in said:
        raise RuntimeError(f"wrk got errors:\n{said}")
    return int(done[1])


TARGET = Target(
    "http",
    "Processor time that the server takes for a request, all threads included, until also its\n"
    "log is written: wrk keeps 32 connections busy for a second; the response is 11 bytes.\n"
    "Unless said otherwise there is no access log.\n"
    "AIOHTTPService: baseline is the same application in an aiohttp.web.AppRunner.\n"
    "With access log: baseline is the service without; with --also aiohttp, aiohttp's own log.\n"
    "ASGIHTTPService: baseline is an aiohttp handler that does the same as the ASGI application;\n"
    "with --also aiohttp_asgi and --also uvicorn, the same application there.\n"
    "UvicornService: baseline is uvicorn.Server.",
    cases,
)
