"""Type checkers accept programs that are right, and find misspelt and mistyped parameters."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

RIGHT = """
from svcrun import Service, parameter
from svcrun.service import AIOHTTPService, CronService, PeriodicService, UvicornService


class Greeter(Service):
    __required__ = ("who",)
    who: str
    greeting: str = "Hello"
    volume: float = parameter(default=1)

    async def start(self) -> None:
        print(self.greeting, self.who)


class Job(PeriodicService):
    interval = 5

    async def callback(self) -> None: ...


Greeter(who="world", volume=3, name="first", start_timeout=5)
Job(delay=3)
CronService(timezone="Europe/Berlin")
AIOHTTPService("::", 80, shutdown_timeout=3)
UvicornService(address="::", port=80, log_level="info")
"""

WRONG = """
from svcrun.service import AIOHTTPService, CronService, PeriodicService, UvicornService

PeriodicService(interval="5")
PeriodicService(interval=5, dealy=3)
CronService(timezone=3)
CronService(timezon="UTC")
AIOHTTPService("::", "80")
AIOHTTPService("::", 80, shutdown_timeot=3)
UvicornService(log_level=1.5)
UvicornService(log_levl="info")
"""


def checked_by(checker: str) -> tuple[str, ...]:
    if importlib.util.find_spec(checker) is None:
        pytest.skip(f"{checker} is not installed")
    for library in ("aiohttp", "croniter", "uvicorn"):
        pytest.importorskip(library)
    arguments = {"mypy": ("--strict",), "pyright": ()}
    return (sys.executable, "-m", checker, *arguments[checker], "program.py")


@pytest.fixture(params=["mypy", "pyright"])
def checker(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    source = (ROOT / "src").as_posix()
    python = Path(sys.executable).as_posix()
    (tmp_path / "pyrightconfig.json").write_text(
        f'{{"typeCheckingMode": "strict", "extraPaths": ["{source}"], "pythonPath": "{python}"}}'
    )
    (tmp_path / "mypy.ini").write_text(f"[mypy]\nmypy_path = {source}\n")
    name: str = request.param
    return name


def run(checker: str, folder: Path, program: str) -> str:
    (folder / "program.py").write_text(program)
    command = checked_by(checker)
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, timeout=300
    ).stdout


def test_a_program_that_is_right_passes_the_strict_mode(checker: str, tmp_path: Path) -> None:
    output = run(checker, tmp_path, RIGHT)
    assert re.search("Success|0 errors", output), output


def test_each_misspelt_or_mistyped_parameter_is_an_error(checker: str, tmp_path: Path) -> None:
    output = run(checker, tmp_path, WRONG)
    lines = {int(line) for line in re.findall(r"program\.py:(\d+)\S* (?:- )?error", output)}
    assert lines == set(range(4, 12)), output
