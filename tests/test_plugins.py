"""C16a: plug-ins are found, set up once before the first entrypoint, and named in the log."""

from __future__ import annotations

import os
import sys
import textwrap
import zipfile
from typing import TYPE_CHECKING, Protocol

import pytest

from svcrun.plugins.search import may_have
from tests.support import STRICT

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support import Outcome, Program

GROUP = "svcrun.plugins"

# A plug-in that counts its set-ups and the signals of later entrypoints.
RECEIVING = """
    '''Say hello at each start.'''
    import svcrun

    def setup():
        print("setup")

        @svcrun.receiver(svcrun.entrypoint.PRE_START)
        async def hello(entrypoint, services):
            print("starting", len(services))
"""

TWICE = """
    from svcrun import Service, entrypoint

    class Idle(Service):
        async def start(self): ...

    for _ in range(2):
        with entrypoint(Idle()):
            pass
"""


def install(folder: Path, **modules: str) -> None:
    """Install a distribution for each module, with the plug-in that it is."""
    for name, source in modules.items():
        (folder / f"{name}.py").write_text(textwrap.dedent(source))
        metadata = folder / f"{name}-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (metadata / "entry_points.txt").write_text(f"[{GROUP}]\n{name} = {name}\n")


class Run(Protocol):
    """Run a program with the distributions installed in `folder`."""

    def __call__(self, source: str, **env: str) -> Outcome: ...


@pytest.fixture
def run(tmp_path: Path, run_program: Callable[..., Program]) -> Run:
    def run(source: str, **env: str) -> Outcome:
        path = f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\n"
        program = run_program(path + textwrap.dedent(source), env=env)
        outcome = program.wait()
        assert outcome.returncode == 0, outcome.stderr
        return outcome

    return run


def test_a_plugin_is_set_up_once_before_the_first_entrypoint_has_its_signals(
    run: Run, tmp_path: Path
) -> None:
    install(tmp_path, greeter=RECEIVING, quiet="def setup(): ...")
    outcome = run(TWICE)
    assert outcome.stdout.split("\n") == ["setup", "starting 1", "starting 1", ""]
    assert outcome.stderr.count("loaded plug-ins: greeter, quiet") == 1


def test_importing_alone_loads_no_plugin(run: Run, tmp_path: Path) -> None:
    install(tmp_path, greeter=RECEIVING)
    assert not run("import svcrun.plugins; from svcrun import entrypoint, plugins").stdout


@pytest.mark.parametrize(("value", "count"), [("1", 0), ("yes", 0), ("", 1), ("off", 1)])
def test_a_variable_switches_plugins_off(run: Run, tmp_path: Path, value: str, count: int) -> None:
    install(tmp_path, greeter=RECEIVING)
    outcome = run(TWICE, SVCRUN_NO_PLUGINS=value)
    assert outcome.stdout.count("setup") == count
    assert outcome.stderr.count("loaded plug-ins") == count


FAILING = {
    "absent": "import nowhere_to_be_found",
    "broken": "def setup(:",
    "coroutine": "async def setup(): ...",
    "exiting": "raise SystemExit(3)",
    "parameters": "def setup(entrypoint): ...",
    "raising": "def setup(): raise LookupError('no such thing')",
    "without": "",
}


def test_a_plugin_that_fails_is_a_warning_and_the_others_are_loaded(
    run: Run, tmp_path: Path
) -> None:
    install(tmp_path, greeter=RECEIVING, **FAILING)
    outcome = run(TWICE)
    assert outcome.stdout.count("setup") == 1
    assert outcome.stdout.count("starting") == 2
    for name in FAILING:
        assert outcome.stderr.count(f"plug-in {name} ({name}) failed") == 1
    assert outcome.stderr.count("loaded plug-ins: greeter\n") == 1
    assert "LookupError: no such thing" in outcome.stderr


def test_a_distribution_that_cannot_be_read_hides_no_other(run: Run, tmp_path: Path) -> None:
    install(tmp_path, greeter=RECEIVING, damaged="")
    path = tmp_path / "damaged-1.0.dist-info" / "entry_points.txt"
    path.write_bytes(f"[{GROUP}]\n".encode() + b"\xff = damaged\n")
    outcome = run(TWICE)
    assert outcome.stdout.count("setup") == 1
    assert outcome.stderr.count("could not look for plug-ins of damaged") == 1
    assert outcome.stderr.count("loaded plug-ins: greeter\n") == 1


def test_the_log_line_about_plugins_is_written_at_once_if_logging_is_configured(
    run: Run, tmp_path: Path
) -> None:
    install(tmp_path, greeter=RECEIVING)
    program = """
        import logging, svcrun
        logging.basicConfig(level="INFO", stream=sys.stdout, format="%(levelname)s %(message)s")
        svcrun.entrypoint()
        print("made")
        with svcrun.entrypoint(log_config=False):
            pass
    """
    lines = ["setup", "INFO loaded plug-ins: greeter", "made", "starting 0"]
    assert run(program).stdout.splitlines() == lines


def test_a_plugin_may_make_an_entrypoint_and_look_at_the_plugins(run: Run, tmp_path: Path) -> None:
    install(
        tmp_path,
        maker="""
            import svcrun

            def setup():
                svcrun.entrypoint()
                print("made", list(svcrun.plugins))
        """,
    )
    outcome = run("import svcrun; svcrun.entrypoint(); print(list(svcrun.plugins))")
    assert outcome.stdout == "made []\n['maker']\n"


def test_threads_that_make_the_first_entrypoints_wait_for_the_plugins(
    run: Run, tmp_path: Path
) -> None:
    install(
        tmp_path,
        slow="""
            import time, svcrun

            def setup():
                print("setup")
                time.sleep(0.1)

                @svcrun.receiver(svcrun.entrypoint.PRE_START)
                async def hello(entrypoint, services): ...
        """,
    )
    program = """
        import threading, svcrun
        found = []
        def make():
            found.append(bool(svcrun.entrypoint().pre_start))
        threads = [threading.Thread(target=make) for _ in range(8)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        print(found == [True] * 8)
    """
    assert run(program).stdout == "setup\nTrue\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="it needs fork")
def test_a_forked_child_has_the_plugins_of_its_parent(run: Run, tmp_path: Path) -> None:
    install(tmp_path, greeter=RECEIVING)
    program = """
        import os, svcrun
        svcrun.entrypoint()
        if pid := os.fork():
            assert os.waitpid(pid, 0)[1] == 0
        else:
            with svcrun.entrypoint():
                os._exit(list(svcrun.plugins) != ["greeter"])
    """
    outcome = run(program)
    assert outcome.stdout.splitlines() == ["setup", "starting 0"]


def test_an_interrupted_loading_raises_and_the_next_entrypoint_retries(
    run: Run, tmp_path: Path
) -> None:
    install(
        tmp_path,
        interrupted="""
            times = []
            def setup():
                times.append(1)
                if len(times) == 1:
                    raise KeyboardInterrupt
        """,
    )
    program = """
        import svcrun
        try:
            svcrun.entrypoint()
        except KeyboardInterrupt:
            print("interrupted")
        svcrun.entrypoint()
        print(list(svcrun.plugins))
    """
    assert run(program).stdout == "interrupted\n['interrupted']\n"


def test_the_command_lists_the_plugins(run_program: Callable[..., Program], tmp_path: Path) -> None:
    install(tmp_path, greeter=RECEIVING, broken="import nowhere_to_be_found")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])

    def lists(*arguments: str) -> Outcome:
        program = "import runpy; runpy.run_module('svcrun.plugins', run_name='__main__')"
        outcome = run_program(program, *arguments, env={"PYTHONPATH": path}).wait()
        assert outcome.returncode == 0, outcome.stderr
        return outcome

    shown = lists()
    assert shown.stdout == "setup\ngreeter\n"
    assert "greeter: Say hello at each start." in shown.stderr
    assert "plug-in broken (broken) failed" in shown.stderr
    assert not lists("--quiet").stderr
    assert lists("--no-output").stdout == "setup\n"


# The search


def test_a_program_without_plugins_does_not_load_importlib_metadata(run: Run) -> None:
    program = "import svcrun; svcrun.entrypoint(); print('importlib.metadata' in sys.modules)"
    assert run(program).stdout == "False\n"


def test_there_is_no_plugin_without_site_packages(run_program: Callable[..., Program]) -> None:
    import svcrun

    assert svcrun.__file__ is not None
    folder = os.path.dirname(os.path.dirname(svcrun.__file__))  # noqa: PTH120
    source = f"import sys; sys.path.append({folder!r})\n" + textwrap.dedent(TWICE)
    outcome = run_program(source, options=[*STRICT, "-I", "-S"]).wait()
    assert (outcome.returncode, outcome.stderr) == (0, "")


def test_a_plugin_in_an_archive_is_found(run: Run, tmp_path: Path) -> None:
    """Something may stand in front of an archive, and a comment behind."""
    content = tmp_path / "content"
    content.mkdir()
    install(content, greeter=RECEIVING)
    archive = tmp_path / "archive.pyz"
    with zipfile.ZipFile(archive, "w") as file:
        file.comment = b"by the test"
        for path in sorted(content.rglob("*")):
            file.write(path, path.relative_to(content))
    archive.write_bytes(b"#!/usr/bin/python3\n" + archive.read_bytes())
    outcome = run(f"sys.path.insert(0, {str(archive)!r})\n" + textwrap.dedent(TWICE))
    assert outcome.stdout.count("setup") == 1


def names(path: Path, group: str = GROUP) -> Path:
    path.parent.mkdir(parents=True)
    path.write_text(f"[console_scripts]\na = a:main\n[{group}]\na = a\n")
    return path


@pytest.fixture
def search(monkeypatch: pytest.MonkeyPatch) -> Callable[..., bool]:
    def search(*paths: object) -> bool:
        monkeypatch.setattr(sys, "path", list(paths))
        return may_have(GROUP)

    return search


def test_metadata_is_found_in_each_of_its_forms(
    tmp_path: Path, search: Callable[..., bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder, place in {
        "wheel": "a-1.0.dist-info",
        "develop": "a.egg-info",
        "a-1.0-py3.11.egg": "EGG-INFO",
    }.items():
        names(tmp_path / folder / place / "entry_points.txt")
        assert search(str(tmp_path / folder))
        monkeypatch.chdir(tmp_path / folder)
        assert search("") is (not folder.endswith(".egg"))


def test_a_long_file_is_read_to_its_end(tmp_path: Path, search: Callable[..., bool]) -> None:
    path = names(tmp_path / "a-1.0.dist-info" / "entry_points.txt")
    path.write_text("[console_scripts]\n" + "a = a:main\n" * 20_000 + path.read_text())
    assert search(str(tmp_path))


def test_a_path_without_metadata_of_plugins_is_skipped(
    tmp_path: Path, search: Callable[..., bool]
) -> None:
    names(tmp_path / "other" / "a-1.0.dist-info" / "entry_points.txt", "pytest11")
    names(tmp_path / "nested" / "deeper" / "a-1.0.dist-info" / "entry_points.txt")
    names(tmp_path / "EGG-INFO" / "entry_points.txt")
    (tmp_path / "folder" / "a-1.0.dist-info" / "entry_points.txt").mkdir(parents=True)
    (tmp_path / "file" / "a").mkdir(parents=True)
    (tmp_path / "file" / "a-1.0.egg-info").write_text("Name: a\n")
    (tmp_path / "no-archive.zip").write_bytes(b"PK\x05\x06")
    (tmp_path / "empty.zip").touch()
    folders = [tmp_path, *sorted(tmp_path.iterdir()), tmp_path / "absent"]
    assert not search(*map(str, folders), b"bytes", None, 42, "with\0nul")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_path_is_skipped(tmp_path: Path, search: Callable[..., bool]) -> None:
    names(tmp_path / "a-1.0.dist-info" / "entry_points.txt")
    tmp_path.chmod(0)
    try:
        assert not search(str(tmp_path))
    finally:
        tmp_path.chmod(0o700)


def test_an_importer_that_finds_distributions_itself_is_used(
    search: Callable[..., bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Finder:
        @staticmethod
        def find_distributions(context: object) -> list[object]:
            return []

    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Finder()])
    assert search()
