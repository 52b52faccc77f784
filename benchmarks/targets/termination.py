"""Termination: the requests that are lost when a web server gets SIGTERM."""

import contextlib
from collections.abc import Iterator, Mapping
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
from benchmarks.processes import program

# Each time, the server gets SIGTERM.
STOPS = 20
REQUESTS = 1_000
PERSISTENT, ONE_SHOT = 64, 16

# The idle clients, and the time from SIGTERM to their next request in seconds.
IDLE = 10
PAUSE = 0.3

LOAD, LATE = "load", "late"

# The services, and the servers that they are compared with.
SERVERS = {"AIOHTTPService": "aiohttp", "ASGIHTTPService": "aiohttp", "UvicornService": "uvicorn"}
LIBRARIES = {
    "AIOHTTPService": {"aiohttp"},
    "ASGIHTTPService": {"aiohttp", "aiohttp_asgi"},
    "UvicornService": {"uvicorn"},
}


def cases(budget: Budget) -> Iterator[Case]:
    needed = sorted(set().union(*LIBRARIES.values()))
    with program(budget.python, "about", libraries=needed) as about:
        missing = set(needed) - set(about.answer()["libraries"])
    stops, requests = budget.amount(STOPS), budget.amount(REQUESTS, least=200)
    for service, baseline in SERVERS.items():
        if LIBRARIES[service] & missing:
            continue
        load = f"{service}, of {stops * requests}"
        late = f"{service}, of {IDLE * stops} late"
        jobs = [
            Job((LOAD, stops, requests), [Metric(load, bound=0, unit="lost")], 1),
            Job((LATE, stops, requests), [Metric(late, bound=0, unit="lost")], 1),
        ]
        for loop in budget.loops:
            sides = {BASELINE: baseline, SVCRUN: service}
            starts = {side: partial(start, budget, one, loop) for side, one in sides.items()}
            yield Case("termination", loop, starts, jobs)
    if missing:
        raise Unavailable(f"not installed: {', '.join(sorted(missing))}")


@contextlib.contextmanager
def start(budget: Budget, server: str, loop: str) -> Iterator[Sample]:
    def sample(job: tuple[str, int, int]) -> Mapping[str, float]:
        kind, stops, requests = job
        return {"cost": sum(stop(budget, server, loop, kind, requests) for _ in range(stops))}

    yield sample


def stop(budget: Budget, server: str, loop: str, kind: str, requests: int) -> int:
    """Stop a server that has clients, and return the number of requests that were lost."""
    with program(budget.python, "signalled_web_server", server=server, loop=loop) as serving:
        clients = {
            "port": serving.answer(),
            "server": serving.pid,
            "persistent": PERSISTENT if kind == LOAD else IDLE,
            "one_shot": ONE_SHOT,
            "requests": requests,
            "pause": None if kind == LOAD else PAUSE,
        }
        serving.wait_for_port(clients["port"])
        with program(budget.python, "persistent_clients", **clients) as asking:
            answered, lost = asking.answer()
    least = requests if kind == LOAD else IDLE
    if answered < least:
        raise RuntimeError(f"{server} answered {answered} requests before SIGTERM, not {least}")
    return int(lost)


TARGET = Target(
    "termination",
    "Requests that are lost when the server gets SIGTERM, in all rounds together: the client gets\n"
    "a reset or an end in place of its response. A connection that is refused loses no request.\n"
    f"{PERSISTENT} clients use their connection again, {ONE_SHOT} use each one once; none pauses.\n"
    f"late: {IDLE} clients whose connection is idle at SIGTERM send a request {PAUSE} s after it.\n"
    "baseline: aiohttp.web.run_app() and uvicorn.Server",
    cases,
)
