"""Laws of the flame graph."""

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip(
    "pyinstrument", reason="needs pyinstrument, which has no wheel for Python 3.15 yet"
)

from svcrun import Service, current_service, entrypoint
from svcrun._insight import flame_graph as _sampling
from svcrun._insight.flame_graph import Sampler
from svcrun._util.eager import start_eagerly
from svcrun.service.profiler import Profiler
from tests.support import PATIENCE, LoopFactory, eventually

CHROMIUM = shutil.which("chromium")


def find_tree(page: str) -> Any:
    """Return the tree of calls in a page, None if nothing was seen."""
    match = re.search(r"const sessionData = (.*);\n", page)
    assert match is not None
    return json.loads(match[1])["frame_tree"]


def find_calls(tree: Any, *outer: str) -> Iterator[tuple[str, ...]]:
    """Yield each call of a tree together with the calls around it."""
    if tree is None:
        return
    calls = (*outer, tree["identifier"].partition("\0")[0])
    yield calls
    for inner in tree["children"]:
        yield from find_calls(inner, *calls)


def spin(sampler: Sampler, looks: int) -> None:
    """Keep the processor busy until a sampler has looked a few times."""
    end = sampler._samples + looks
    deadline = time.monotonic() + PATIENCE
    while sampler._samples < end and time.monotonic() < deadline:
        pass


def look_enough(sampler: Sampler, looks: int = 5) -> None:
    """Run :func:`spin` until a sampler has taken a few samples."""
    spin(sampler, looks)


class Busy(Service):
    """A service that keeps the loop busy, in a task and in a callback of that task."""

    async def start(self) -> None:
        self.start_event.set()
        while True:
            self.work_in_start()
            await asyncio.create_task(self.run_inner())

    def work_in_start(self) -> None:
        time.sleep(0.005)

    async def run_inner(self) -> None:
        time.sleep(0.005)  # noqa: ASYNC251 - to be seen
        await asyncio.sleep(0)


def test_calls_are_attributed_to_the_service_at_work(
    loop_factory: LoopFactory, tmp_path: Path, no_leaks: None
) -> None:
    path = tmp_path / "page.html"

    async def main() -> None:
        profiler = Profiler(flamegraph=path, sample_interval=0.001, interval=0.2)
        services = (profiler, Busy(name="first"), Busy(name="</script>"))
        async with entrypoint(*services, log_config=False):
            for service in ("first", "< /script>"):
                for method in ("Busy.work_in_start", "Busy.run_inner"):
                    await eventually(lambda: is_there(service, method))  # noqa: B023 - at once

    def is_there(service: str, method: str) -> bool:
        calls = find_calls(find_tree(path.read_text(encoding="utf-8")))
        return any(service in one and one[-1] == method for one in calls)

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())
    page = path.read_text(encoding="utf-8")
    assert page.count("</script>") == 3  # pyinstrument's two, and ours
    for calls in find_calls(find_tree(page)):
        # The way from the program to the loop is left out.
        assert not {"Runner.run", "BaseEventLoop._run_once", "Handle._run"} & set(calls[2:])


def test_idle_time_of_the_loop_is_left_out(loop_factory: LoopFactory) -> None:
    async def main() -> str:
        sampler = Sampler(asyncio.get_running_loop(), 0.001)
        await eventually(lambda: sampler._samples >= 100)
        sampler.stop()
        return sampler.render()

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        begin = time.monotonic()
        tree = find_tree(runner.run(main()))
    seen = 0 if tree is None else tree["time"]
    assert seen < (time.monotonic() - begin) / 2


def test_calls_of_a_callback_are_attributed_to_its_service() -> None:
    async def main() -> str:
        sampler = Sampler(asyncio.get_running_loop(), 0.001)
        current_service.set(Busy(name="callback's"))
        asyncio.get_running_loop().call_soon(look_enough, sampler)
        await asyncio.sleep(0.001)
        sampler.stop()
        return sampler.render()

    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        tree = find_tree(runner.run(main()))
    assert any(one[-3:] == ("callback's", "look_enough", "spin") for one in find_calls(tree))


async def test_the_stack_of_a_task_begins_with_the_task() -> None:
    async def inner() -> None:
        look_enough(sampler)

    sampler = Sampler(asyncio.get_running_loop(), 0.001)
    await start_eagerly(inner(), asyncio.get_running_loop())
    sampler.stop()
    calls = [one for one in find_calls(find_tree(sampler.render())) if "spin" in one]
    assert calls
    for one in calls:
        assert one[one.index("(no service)") + 1].endswith("inner")


async def test_calls_of_no_service_have_a_root_of_their_own() -> None:
    sampler = Sampler(asyncio.get_running_loop(), 0.001)
    look_enough(sampler)
    sampler.stop()
    assert any("(no service)" in calls for calls in find_calls(find_tree(sampler.render())))


async def test_a_deep_stack_is_cut() -> None:
    def go_down(depth: int) -> None:
        if depth:
            go_down(depth - 1)
        else:
            look_enough(sampler)

    sampler = Sampler(asyncio.get_running_loop(), 0.001)
    go_down(500)
    sampler.stop()
    calls = max(find_calls(find_tree(sampler.render())), key=len)
    assert len(calls) < 210
    assert "(outer calls)" in calls


async def test_the_number_of_stacks_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_sampling, "_MAX_STACKS", 3)
    monkeypatch.setattr(_sampling, "_MAX_LABELS", 3)
    sampler = Sampler(asyncio.get_running_loop(), 0.001)
    for number in range(10):
        source = f"def f{number}():\n look()\nf{number}()"
        exec(source, {"look": lambda: look_enough(sampler, 3)})  # noqa: S102 - our own
    sampler.stop()
    assert len(sampler._seconds) <= 4
    assert ("(no service)", "(other stacks)") in sampler._seconds
    assert len(sampler._labels) <= 3


def test_sampling_ends_with_the_loop(no_leaks: None) -> None:
    async def main() -> Sampler:
        return Sampler(asyncio.get_running_loop(), 0.001)

    with asyncio.Runner() as runner:
        sampler = runner.run(main())
    sampler._thread.join(10)
    assert not sampler._thread.is_alive()
    sampler.stop()


def test_a_missing_library_is_an_error_when_the_service_is_created(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, "svcrun._insight.flame_graph")
    monkeypatch.setitem(sys.modules, "pyinstrument", None)
    monkeypatch.setitem(sys.modules, "pyinstrument.renderers", None)
    with pytest.raises(ImportError, match=r"pip install 'svcrun\[flamegraph\]'"):
        Profiler(flamegraph="page.html")
    Profiler()


@pytest.mark.parametrize("value", [0, -1, "1", True, float("inf")])
def test_a_wrong_sample_interval_is_named(value: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="sample_interval must be"):
        Profiler(flamegraph="page.html", sample_interval=value)


def test_the_profile_and_the_flame_graph_can_not_be_the_same_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with pytest.raises(ValueError, match="flamegraph must be"):
        Profiler(path=os.fspath(path), flamegraph=path)


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_a_browser_shows_the_page_without_a_network(tmp_path: Path) -> None:
    page, profile = tmp_path / "page.html", tmp_path / "profile"
    with entrypoint(Profiler(flamegraph=page, sample_interval=0.001), log_config=False):
        time.sleep(0.05)
    assert CHROMIUM is not None
    log = tmp_path / "net.json"
    command = [
        *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
        *("--disable-background-networking", "--disable-component-update", "--no-first-run"),
        *(f"--user-data-dir={profile}", "--virtual-time-budget=5000", "--enable-logging=stderr"),
        *(f"--log-net-log={log}", "--dump-dom", page.as_uri()),
    ]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100)
    body = re.sub("<script>.*?</script>", "", shown.stdout, flags=re.DOTALL)
    assert "<canvas" in body
    assert "Samples:" in body
    assert "fonts.googleapis.com" not in log.read_text(encoding="utf-8")
    assert "Uncaught" not in shown.stderr
