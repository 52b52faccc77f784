"""Laws of the metrics (C48)."""

import asyncio
import functools
import importlib
import logging
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

prometheus_client = pytest.importorskip("prometheus_client")

import svcrun  # noqa: E402
from svcrun import Restart, Service, entrypoint  # noqa: E402
from svcrun._health.metrics import METRICS  # noqa: E402
from svcrun.service import PeriodicService, TCPServer, UDPServer  # noqa: E402
from svcrun.service.health import HealthService  # noqa: E402
from tests.service.health_client import Idle, ask, make, run_beside, wait_until  # noqa: E402
from tests.support import ROOT, LoopFactory, Program  # noqa: E402

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture
def run(loop_factory: LoopFactory) -> Callable[..., None]:
    return functools.partial(run_beside, loop_factory)


def scrape(health: HealthService) -> Samples:
    answer = ask(health, "/metrics")
    assert answer.status == 200, answer.text
    parse = importlib.import_module("prometheus_client.parser").text_string_to_metric_families
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in parse(answer.text)
        for sample in family.samples
    }


def change(health: HealthService, method: str, *services: Service) -> None:
    """Start or stop services while their entrypoint runs."""

    async def call() -> None:
        await getattr(svcrun.entrypoint.get_current(), method)(*services)

    asyncio.run_coroutine_threadsafe(call(), health.loop).result(20)


def value(samples: Samples, name: str, **labels: str) -> float | None:
    return samples.get((f"svcrun_{name}", frozenset(labels.items())))


class Echo(TCPServer):
    async def handle_client(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        async for line in reader:
            writer.write(line)


@contextmanager
def client(server: Any) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as sock:
        sock.sendall(b"hello\n")
        assert sock.recv(100) == b"hello\n"
        yield sock


def test_the_counts_of_a_server_are_those_of_its_clients(run: Any, no_leaks: None) -> None:
    echo, health = Echo(address="127.0.0.1", port=0, name="echo"), make()

    def check() -> None:
        for _ in range(7):
            with client(echo):
                pass
        with client(echo), client(echo):
            wait_until(lambda: value(scrape(health), "connections_open", service="echo") == 2)
            samples = scrape(health)
            assert value(samples, "connections_accepted_total", service="echo") == 9
            assert value(samples, "connections_refused_total", service="echo") == 0
        wait_until(lambda: value(scrape(health), "connections_open", service="echo") == 0)

    run(check, echo, health)


def test_each_service_has_the_state_one(run: Any) -> None:
    idle, health = Idle(name="cache"), make()

    def check() -> None:
        samples = scrape(health)
        states = {
            dict(labels)["state"]: one
            for (name, labels), one in samples.items()
            if name == "svcrun_service_state" and ("service", "cache") in labels
        }
        assert states.pop("running") == 1
        assert set(states.values()) == {0}
        assert {*states} == {"new", "starting", "stopping", "stopped", "failed"}

    run(check, idle, health)


def test_services_of_one_name_have_numbers(run: Any) -> None:
    health = make()

    def check() -> None:
        for label in ("Idle", "Idle#2", "Idle#3"):
            assert value(scrape(health), "service_state", service=label, state="running") == 1

    run(check, Idle(), Idle(), Idle(), health)


def test_crashes_restarts_and_the_time_of_a_start_are_counted(run: Any) -> None:
    class Crashing(Service):
        crash: Any = None

        async def start(self) -> None:
            await asyncio.sleep(0.05)
            self.start_event.set()
            await self.crash.wait()
            self.crash.clear()
            raise LookupError

        async def stop(self, exception: BaseException | None = None) -> None:
            await asyncio.sleep(0.02)

    crashing = Crashing(crash=asyncio.Event(), on_crash=Restart(delay=0.01), name="crashing")
    health = make()

    def check() -> None:
        loop = crashing.loop
        for n in range(3):
            samples = scrape(health)
            assert value(samples, "crashes_total", service="crashing") == n
            assert value(samples, "restarts_total", service="crashing") == n
            assert (value(samples, "start_seconds", service="crashing") or 0) > 0.04
            stopped = value(samples, "stop_seconds", service="crashing")
            assert stopped is None if n == 0 else (stopped or 0) > 0.01
            if n < 2:
                loop.call_soon_threadsafe(crashing.crash.set)
                wait_until(
                    lambda n=n: (  # type: ignore[misc]
                        value(scrape(health), "restarts_total", service="crashing") == n + 1
                        and crashing.state.value == "running"
                    )
                )

    run(check, crashing, health)


def test_a_service_that_was_started_and_stopped_later_keeps_its_series(run: Any) -> None:
    late, health = Idle(name="late"), make()

    def check() -> None:
        assert value(scrape(health), "crashes_total", service="late") is None
        change(health, "start_services", late)
        assert value(scrape(health), "service_state", service="late", state="running") == 1
        change(health, "stop_services", late)
        assert value(scrape(health), "service_state", service="late", state="stopped") == 1
        assert value(scrape(health), "crashes_total", service="late") == 0

    run(check, health)


def test_calls_are_counted_and_timed(run: Any) -> None:
    class Job(PeriodicService):
        async def callback(self) -> None:
            if self.periodic.calls == 2:
                raise LookupError
            await asyncio.sleep(0.02)

    job, health = Job(interval=0.005, name="job"), make()

    def check() -> None:
        wait_until(lambda: job.periodic.calls >= 6)
        samples = scrape(health)
        calls = value(samples, "calls_total", service="job") or 0
        assert calls >= 6
        assert value(samples, "failures_total", service="job") == 1
        assert (value(samples, "skipped_total", service="job") or 0) >= 3
        assert (value(samples, "call_seconds_total", service="job") or 0) >= 0.02 * (calls - 2)
        assert (value(samples, "call_lateness_seconds_total", service="job") or 0) > 0

    run(check, job, health)


def test_the_calls_of_a_cron_service_are_counted_in_all_runs(run: Any) -> None:
    pytest.importorskip("croniter")
    from svcrun.service import cron

    class Jobs(cron.CronService):
        async def start(self) -> None:
            self.register(self.job, "* * * * * *")
            await super().start()

        async def job(self) -> None: ...

    jobs, health = Jobs(name="jobs"), make()

    def check() -> None:
        wait_until(lambda: (value(scrape(health), "calls_total", service="jobs") or 0) >= 1)
        for step in ("stop_services", "start_services", "stop_services"):
            change(health, step, jobs)
            assert (value(scrape(health), "calls_total", service="jobs") or 0) >= 1

    run(check, jobs, health)


def test_datagrams_that_are_dropped_are_counted(run: Any) -> None:
    class Slow(UDPServer):
        release: Any = None

        async def handle_datagram(self, data: bytes, addr: Any) -> None:
            await self.release.wait()

    slow = Slow(address="127.0.0.1", port=0, max_tasks=2, release=asyncio.Event(), name="slow")
    health = make()

    def check() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for _ in range(5):
                sock.sendto(b"x", ("127.0.0.1", slow.port))
            wait_until(
                lambda: value(scrape(health), "datagrams_dropped_total", service="slow") == 3
            )
        health.loop.call_soon_threadsafe(slow.release.set)

    run(check, slow, health)


def test_log_records_and_busy_threads_are_counted(loop_factory: LoopFactory) -> None:
    health, release = make(), threading.Event()
    log = logging.getLogger("test.metrics")

    def check() -> None:
        before = value(scrape(health), "log_records_written_total") or 0
        for n in range(10):
            log.warning("record %d", n)
        wait_until(lambda: (value(scrape(health), "log_records_written_total") or 0) >= before + 10)
        assert value(scrape(health), "threads_max") == 3
        health.loop.call_soon_threadsafe(
            lambda: [health.loop.run_in_executor(None, release.wait) for _ in range(4)]
        )
        wait_until(lambda: value(scrape(health), "threads_busy") == 3)  # this one is the third
        wait_until(lambda: value(scrape(health), "thread_jobs_waiting") == 2)
        release.set()
        wait_until(lambda: value(scrape(health), "threads_busy") == 1)

    with entrypoint(health, loop_factory=loop_factory, pool_size=3) as loop:
        loop.run_until_complete(asyncio.to_thread(check))


def test_a_blocked_loop_is_scraped(run: Any) -> None:
    release = threading.Event()
    health = make()

    def check() -> None:
        health.loop.call_soon_threadsafe(release.wait)
        wait_until(lambda: (value(scrape(health), "loop_lag_seconds") or 0) > 0.4)
        wait_until(lambda: (value(scrape(health), "loop_lag_seconds") or 0) > 1.1)
        release.set()
        wait_until(lambda: (value(scrape(health), "loop_blocked_seconds_total") or 0) > 1)
        assert value(scrape(health), "ready") == 1

    run(check, health)


def test_no_series_decreases_in_fifty_scrapes_under_load(run: Any) -> None:
    echo, health = Echo(address="127.0.0.1", port=0), make()
    is_over = threading.Event()

    def load() -> None:
        while not is_over.is_set():
            with client(echo):
                pass

    def check() -> None:
        threads = [threading.Thread(target=load) for _ in range(3)]
        for thread in threads:
            thread.start()
        last: Samples = {}
        for _ in range(50):
            samples = scrape(health)
            for key, one in samples.items():
                if key[0].startswith("svcrun_") and key[0].endswith("_total"):
                    assert one >= last.get(key, 0), key
            assert last.keys() <= samples.keys()
            last = samples
        is_over.set()
        for thread in threads:
            thread.join()

    run(check, echo, health)


# The formats.


def test_open_metrics_are_sent_if_the_client_accepts_them(run: Any) -> None:
    health = make()

    def check() -> None:
        accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"
        answer = ask(health, "/metrics", headers={"Accept": accept})
        assert answer.content_type.startswith("application/openmetrics-text")
        assert answer.text.endswith("# EOF\n")
        assert 'svcrun_crashes_total{service="health"} 0.0\n' in answer.text
        parser = importlib.import_module("prometheus_client.openmetrics.parser")
        assert list(parser.text_string_to_metric_families(answer.text))
        assert ask(health, "/metrics").content_type.startswith("text/plain; version=0.0.4")
        assert ask(health, "/metrics", "HEAD")[:2] == (200, "")

    run(check, health)


def test_the_metrics_of_the_program_are_there_as_well(run: Any) -> None:
    orders = prometheus_client.Counter("test_orders", "Orders of this test.")
    health = make()

    def check() -> None:
        orders.inc(3)
        assert scrape(health)["test_orders_total", frozenset()] == 3

    try:
        run(check, health)
    finally:
        prometheus_client.REGISTRY.unregister(orders)


def test_a_name_may_have_any_characters(run: Any) -> None:
    name = 'a"b\\c\nd\udc80é'
    health = make()

    def check() -> None:
        labels = {dict(key[1]).get("service") for key in scrape(health)}
        assert 'a"b\\c\nd\\udc80é' in labels

    run(check, Idle(name=name), health)


def test_two_entrypoints_one_after_the_other_have_metrics_of_their_own(run: Any) -> None:
    for name in ("first", "second"):
        health = make()

        def check(name: str = name, health: HealthService = health) -> None:
            samples = scrape(health)
            names = {dict(key[1]).get("service") for key in samples} - {None}
            assert names == {name, "health"}

        run(check, Idle(name=name), health)


# Collectors of the program that fail.


class Collector:
    def __init__(self, collect: Callable[[], Any]) -> None:
        self.collect = collect
        self.describe: Any = list  # else the registry calls collect() at once


@contextmanager
def registered(collect: Callable[[], Any]) -> Iterator[None]:
    collector: Any = Collector(collect)
    prometheus_client.REGISTRY.register(collector)
    try:
        yield
    finally:
        prometheus_client.REGISTRY.unregister(collector)


def test_a_collector_that_raises_is_an_error_and_logged_once(
    run: Any, caplog: pytest.LogCaptureFixture
) -> None:
    health = make()
    is_broken = True

    def collect() -> list[Any]:
        if is_broken:
            raise LookupError("no such table")
        return []

    def check() -> None:
        nonlocal is_broken
        for _ in range(3):
            assert ask(health, "/metrics").status == 500
        assert ask(health, "/livez").status == 200
        is_broken = False
        assert ask(health, "/metrics").status == 200
        is_broken = True
        assert ask(health, "/metrics").status == 500

    with registered(collect):
        run(check, health)
    errors = [record for record in caplog.records if record.levelname == "ERROR"]
    assert len(errors) == 2
    assert "no such table" in caplog.text


def test_a_collector_that_hangs_delays_no_probe(
    run: Any, monkeypatch: pytest.MonkeyPatch, no_leaks: None
) -> None:
    monkeypatch.setattr("svcrun._health.server.SLOW_LIMIT", 0.3)
    health, release, entered = make(), threading.Event(), threading.Event()

    def collect() -> list[Any]:
        entered.set()
        release.wait(20)
        return []

    def check() -> None:
        answers: list[Any] = []
        first = threading.Thread(target=lambda: answers.append(ask(health, "/metrics")))
        first.start()
        assert entered.wait(20)
        assert ask(health, "/metrics").status == 503  # one at a time
        assert ask(health, "/livez").status == 200
        assert ask(health, "/readyz").status == 200
        first.join()
        assert answers[0].status == 503
        assert "too long" in answers[0].text
        release.set()
        wait_until(lambda: ask(health, "/metrics").status == 200)

    with registered(collect):
        run(check, health)


def test_a_scrape_that_hangs_does_not_delay_the_stop(
    run_program: Callable[..., Program],
) -> None:
    program = run_program(
        """
import threading, urllib.request
import prometheus_client
from svcrun import entrypoint
from svcrun.service import HealthService

class Hanging:
    def describe(self):
        return []

    def collect(self):
        print("scraped", flush=True)
        threading.Event().wait()

prometheus_client.REGISTRY.register(Hanging())
health = HealthService(port=0)
with entrypoint(health) as loop:
    url = f"http://127.0.0.1:{health.port}/metrics"
    threading.Thread(target=urllib.request.urlopen, args=(url,), daemon=True).start()
    loop.run_forever()
"""
    )
    program.wait_for_line("scraped")
    program.terminate()
    assert program.wait().returncode == 0


# Without the library.


def test_without_the_library_the_response_says_what_to_install(
    run_program: Callable[..., Program],
) -> None:
    outcome = run_program(
        """
import sys, asyncio, urllib.request, urllib.error
sys.modules["prometheus_client"] = None
from svcrun import entrypoint
from svcrun.service import HealthService

def ask():
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{health.port}/metrics")
    except urllib.error.HTTPError as error:
        print(error.code, error.read().decode())

health = HealthService(port=0)
with entrypoint(health, log_config=False) as loop:
    loop.run_until_complete(asyncio.to_thread(ask))
"""
    ).wait()
    assert outcome.stdout == (
        "501 /metrics needs prometheus-client: pip install 'svcrun[prometheus]'\n\n"
    )


def test_the_alerts_of_the_manual_use_metrics_that_exist() -> None:
    text = (ROOT / "docs/howto/health.rst").read_text(encoding="utf-8")
    used = set(re.findall(r"svcrun_(\w+)", text))
    assert used
    assert used <= METRICS.keys()
