"""Laws of the status page (C49)."""

import asyncio
import functools
import re
import socket
import threading
import time
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import pytest

from svcrun import Restart, Service
from svcrun._health.graph import draw
from svcrun._health.http import Request, parse
from svcrun._health.probes import Probes
from svcrun.service import PeriodicService
from svcrun.service.health import HealthService
from tests.service.health_client import Idle, ask, make, run_beside, wait_until
from tests.support import LoopFactory

VOID = {"meta", "br", "rect", "path"}


@pytest.fixture
def run(loop_factory: LoopFactory) -> Callable[..., None]:
    return functools.partial(run_beside, loop_factory)


class Table(HTMLParser):
    """The rows of the table of a page; each element that was opened has to be closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in {"th", "td"}:
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: Any) -> None: ...

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.rows and {"th", "td"} & {*self.open}:
            self.rows[-1][-1] += data


def rows(health: HealthService) -> dict[str, list[str]]:
    """Return the cells of each service."""
    answer = ask(health, "/")
    assert answer.status == 200
    return {name: cells for name, *cells in Table(answer.text).rows[1:]}


class Failing(Service):
    """A service that crashes once, when it is told to."""

    crash: Any = None
    password: str = ""

    async def start(self) -> None:
        self.start_event.set()
        await self.crash.wait()
        raise LookupError(f"<script>no</script> {self.password} redis://joe:{self.password}@cache")


def test_each_service_has_a_row_with_its_state_and_history(run: Any, no_leaks: None) -> None:
    database, health = Idle(name="database"), make()
    failing = Failing(
        name="mailer",
        crash=asyncio.Event(),
        password="hunter2",  # noqa: S106
        on_crash=Restart(delay=60, max_delay=60),
        depends_on=database,
    )

    def check() -> None:
        found = rows(health)
        assert [*found] == ["database", "mailer", "health"]
        assert found["database"][0] == "running"
        assert re.fullmatch(r"\d\d:\d\d:\d\d", found["database"][1])
        assert found["mailer"][2:] == ["0", "0", "", ""]
        failing.loop.call_soon_threadsafe(failing.crash.set)
        wait_until(lambda: rows(health)["mailer"][0] == "stopped, restarting")
        error = "LookupError: <script>no</script> *** redis://***@cache"
        assert rows(health)["mailer"][2:] == ["1", "0", "", error]
        text = ask(health, "/").text
        assert "hunter2" not in text
        assert "<script>no" not in text

    run(check, database, failing, health)


def test_the_next_calls_of_schedules_are_shown(run: Any) -> None:
    pytest.importorskip("croniter")
    from svcrun.service import cron

    class Job(PeriodicService):
        def callback(self) -> None: ...

    async def nightly() -> None: ...

    jobs, health = cron.CronService(name="jobs"), make()
    jobs.register(nightly, "0 3 * * *", name="nightly")

    def check() -> None:
        found = rows(health)
        assert re.fullmatch(r"(\d{4}-\d\d-\d\d )?\d\d:\d\d(:\d\d)? nightly", found["jobs"][4])
        assert re.match(r"(\d{4}-\d\d-\d\d )?\d\d:\d\d", found["job"][4])

    run(check, Job(interval=60, delay=60, name="job"), jobs, health)


def test_the_values_of_keywords_are_not_shown(run: Any) -> None:
    class Configured(Service):
        endpoint: str = ""

        async def start(self) -> None: ...

    health = make()

    def check() -> None:
        assert "internal.example.org" not in ask(health, "/").text

    run(check, Configured(endpoint="internal.example.org"), health)


def test_a_blocked_loop_is_shown_with_the_stack(run: Any) -> None:
    health, release = make(), threading.Event()

    def block() -> None:
        while not release.is_set():
            time.sleep(0.01)

    def check() -> None:
        health.loop.call_soon_threadsafe(block)
        wait_until(lambda: "event loop blocked for" in ask(health, "/?fragment").text)
        text = ask(health, "/?fragment").text
        assert "in block" in text
        assert "<html" not in text
        release.set()
        wait_until(lambda: "event loop blocked for" not in ask(health, "/?fragment").text)

    run(check, health)


def test_a_browser_may_run_nothing_but_the_script_of_the_page(run: Any) -> None:
    health = make()

    def check() -> None:
        with socket.create_connection(("127.0.0.1", health.port or 0)) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answer = b""
            while data := sock.recv(65536):
                answer += data
        head = answer.partition(b"\r\n\r\n")[0].decode()
        assert "Content-Security-Policy: default-src 'none'; script-src 'sha256-" in head
        assert b"http:" not in answer.partition(b"\r\n\r\n")[2]
        assert b"https:" not in answer

    run(check, health)


# Clients.


@pytest.mark.parametrize(
    "header",
    [
        "Host: shop.example.org",
        "Host: shop.example.org:8081",
        "Host: localhost.example.org",
        "Host: localhost\r\nX-Forwarded-For: 192.0.2.1",
        "Host: localhost\r\nForwarded: for=192.0.2.1",
        "Host: localhost\r\nVia: 1.1 proxy",
    ],
)
def test_a_request_for_another_host_or_by_a_proxy_is_not_direct(header: str) -> None:
    request = parse(f"GET / HTTP/1.1\r\n{header}\r\n\r\n".encode())
    assert request is not None
    assert not request.is_direct


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8081", "127.0.0.1", "127.0.0.1:8081", "[::1]", "[::1]:8081"]
)
def test_a_request_for_this_host_is_direct(host: str) -> None:
    request = parse(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    assert request is not None
    assert request.is_direct


@pytest.mark.parametrize("expose", [False, True])
def test_the_page_is_for_clients_of_this_host_unless_it_is_exposed(
    run: Any, monkeypatch: pytest.MonkeyPatch, *, expose: bool
) -> None:
    health = make(expose=expose)
    respond_to = Probes.respond
    peers: list[Any] = [("192.0.2.1", 1), ("127.0.0.1", 1)]

    def respond(self: Probes, request: Request, _: object) -> Any:
        return respond_to(self, request, peers[0])

    monkeypatch.setattr(Probes, "respond", respond)

    def check() -> None:
        expected = 200 if expose else 404
        assert ask(health, "/").status == expected
        del peers[0]
        assert ask(health, "/").status == 200
        assert ask(health, "/", headers={"Host": "shop.example.org"}).status == expected
        assert ask(health, "/", "POST").status == 405

    run(check, health)


# The picture.


def arrows(picture: str) -> int:
    return picture.count('<path class="head"')


def test_the_picture_has_an_arrow_for_each_dependency() -> None:
    picture = draw([("a", "good", []), ("b", "good", ["a"]), ("c", "bad", ["a", "b"])])
    assert arrows(picture) == 3
    assert picture.count("<rect") == 3
    places = [int(x) for x in re.findall(r'<rect x="(\d+)"', picture)]
    assert places == sorted(set(places))  # each to the right of those that it depends on


def test_without_dependencies_and_with_too_many_services_there_is_no_picture() -> None:
    assert draw([]) == ""
    assert draw([("a", "good", []), ("b", "good", [])]) == ""
    assert draw([(str(n), "good", ["0"] if n else []) for n in range(61)]) == ""


def test_a_cycle_and_a_long_name_can_be_drawn() -> None:
    picture = draw([("<a" * 30, "good", ["b"]), ("b", "good", ["<a" * 30])])
    assert arrows(picture) == 2
    assert "<a<a" not in picture
    assert "…" in picture
