"""The project's own files agree with each other and with the package."""

import importlib.metadata
import os
import re
import shutil
import socket
import subprocess
import textwrap
import tomllib
from collections.abc import Callable
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import pytest

import svcrun
from tests.support import PATIENCE, ROOT, Program, has

README = (ROOT / "README.rst").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS: dict[str, list[str]] = PROJECT["project"]["optional-dependencies"]
SOURCE = ROOT / "src" / "svcrun"

# The top-level modules of the distributions behind the extras, where the names differ.
IMPORT_NAMES = {"python-json-logger": "pythonjsonlogger"}


def blocks(language: str) -> list[str]:
    """Return the code blocks of the README in one language."""
    pattern = rf"^\.\. code-block:: {language}\n\n((?:(?:    .*)?\n)+)"
    return [textwrap.dedent(block).strip() for block in re.findall(pattern, README, re.MULTILINE)]


def libraries() -> set[str]:
    """Return the names by which the libraries behind the extras are imported."""
    required = {
        re.match(r"[\w-]+", requirement)[0]  # type: ignore[index]  # each begins with a name
        for extra, requirements in EXTRAS.items()
        if extra != "all"
        for requirement in requirements
    }
    return {IMPORT_NAMES.get(name, name.replace("-", "_")) for name in required}


def test_the_readme_has_two_commands_of_one_line_each() -> None:
    run_example, run_tests = blocks("sh")
    assert "\n" not in run_example + run_tests
    example = run_example.split()[-1]
    assert (ROOT / example).is_file()
    assert run_tests.endswith("tox run")


def test_ci_runs_the_test_command_of_the_readme() -> None:
    bash = shutil.which("bash")
    assert bash is not None
    shown = subprocess.run(
        [bash, ROOT / ".ci" / "run", "--show"], check=True, capture_output=True, text=True
    ).stdout
    assert shown.strip() == blocks("sh")[1]


def test_ci_fails_if_a_tox_environment_is_skipped(tmp_path: Path) -> None:
    """The README's command is replaced by one that prints the output of tox."""
    bash = shutil.which("bash")
    assert bash is not None
    said = "echo '  py311: OK (1.0 seconds)'; echo \"  $2\""
    programs = {".ci/newer-pythons": "", ".ci/install-programs": "", "python3": said}
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci" / "run")
    for name, code in programs.items():
        (tmp_path / name).write_text(f"#!{bash}\n{code}\n")
        (tmp_path / name).chmod(0o755)
    for other, status in (("py315: OK (1.0 seconds)", 0), ("py315: SKIP (0.1 seconds)", 1)):
        (tmp_path / "README.rst").write_text(f"    python3 -c '{other}' run\n")
        done = subprocess.run(
            [bash, tmp_path / ".ci" / "run"],
            env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == status, done
        assert ("skipped, which is an error in CI: py315" in done.stdout) == bool(status)


def test_the_example_of_the_readme_serves_its_clients_until_it_is_interrupted(
    run_program: Callable[..., Program], unused_tcp_port: int, unused_udp_port: int
) -> None:
    (source,) = (block for block in blocks("python") if "Heartbeat" in block)
    source = source.replace("8901", str(unused_tcp_port)).replace("3000", str(unused_udp_port))
    program = run_program(source, env={"SVCRUN_LOG_FORMAT": "stream"})
    program.wait_for_line("example is alive", stream="stderr")

    with socket.create_connection(("localhost", unused_tcp_port), PATIENCE) as client:
        client.sendall(b"hello\n")
        assert client.recv(100) == b"hello\n"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:  # "localhost" may be ::1, too
        client.sendto(b"good morning", ("localhost", unused_udp_port))
    program.wait_for_line("sent b'good morning'", stream="stderr")

    program.interrupt()
    outcome = program.wait()
    assert (outcome.returncode, outcome.stdout) == (0, "")
    assert "Traceback" not in outcome.stderr


def test_the_version_is_the_same_everywhere() -> None:
    assert svcrun.__version__ == importlib.metadata.version("svcrun")
    changelog = (ROOT / "CHANGELOG.rst").read_text(encoding="utf-8")
    assert re.search(rf"^{re.escape(svcrun.__version__)} .*\n-+$", changelog, re.MULTILINE)


def test_the_package_says_that_it_is_typed() -> None:
    assert Path(svcrun.__file__).with_name("py.typed").is_file()


def test_the_extra_all_includes_every_other_extra() -> None:
    (requirement,) = EXTRAS["all"]
    assert requirement == f"svcrun[{','.join(name for name in EXTRAS if name != 'all')}]"


@pytest.mark.parametrize("page", ["README.rst", "docs/installation.rst"])
def test_every_extra_is_in_the_list_of_extras(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    listed = re.findall(r"^(?: +\* - )?``(\w+)``(?: |$)", text, re.MULTILINE)
    assert set(listed) | {"all"} == set(EXTRAS)


def test_the_core_may_import_no_library_of_an_extra() -> None:
    contracts: list[dict[str, Any]] = PROJECT["tool"]["importlinter"]["contracts"]
    (contract,) = (it for it in contracts if it["type"] == "forbidden" and "ignore_imports" in it)
    assert set(contract["forbidden_modules"]) == libraries()


def test_every_extra_that_the_package_names_exists() -> None:
    named = {
        extra
        for path in SOURCE.rglob("*.py")
        for extra in re.findall(r"svcrun\[(\w+)\]", path.read_text(encoding="utf-8"))
    }
    assert named <= set(EXTRAS)


def test_every_supported_python_is_tested_with_and_without_uvloop() -> None:
    versions = re.findall(r"Python :: 3\.(\d+)", "\n".join(PROJECT["project"]["classifiers"]))
    tox = ConfigParser()
    tox.read(ROOT / "tox.ini", encoding="utf-8")
    environments = tox["tox"]["env_list"].split()
    factor = f"py3{{{','.join(versions)}}}"
    assert {factor, f"{factor}-uvloop", "bare"} <= set(environments)


IMPORT_ALL = """
import importlib, pkgutil, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in sys.argv[1:]:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())

import svcrun

def refused(name):
    print(name, sys.exc_info()[1], sep="\\t")

for module in pkgutil.walk_packages(svcrun.__path__, "svcrun.", onerror=refused):
    if not module.name.endswith("__main__"):
        try:
            importlib.import_module(module.name)
        except ImportError:
            refused(module.name)
"""


def test_a_module_without_its_extra_says_how_to_install_it_and_all_others_need_none(
    run_program: Callable[..., Program],
) -> None:
    outcome = run_program(IMPORT_ALL, *sorted(libraries())).wait()
    assert (outcome.returncode, outcome.stderr) == (0, "")
    for line in outcome.stdout.splitlines():
        module, message = line.split("\t")
        # A private module may leave the message to the public one that imports it.
        if "._" in module and any(f"No module named {name!r}" in message for name in libraries()):
            continue
        match = re.fullmatch(r"svcrun\.[^:]+ needs? [\w-]+: pip install 'svcrun\[(\w+)\]'", message)
        assert match, line
        assert match[1] in EXTRAS


@pytest.mark.skipif(not has("uvloop"), reason="needs uvloop")
async def test_coroutine_tests_run_on_uvloop_where_it_is_installed() -> None:
    import asyncio

    assert type(asyncio.get_running_loop()).__module__.startswith("uvloop")
