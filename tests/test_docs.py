"""Every block of code in the README and the manual runs, with the documented output."""

import ast
import dataclasses
import doctest
import importlib
import re
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from configparser import ConfigParser
from pathlib import Path

import pytest

import svcrun
from svcrun import errors, log, service, thread_pool
from svcrun.state import TRANSITIONS
from tests.conftest import Certificates
from tests.documents import Block, Scene, find_blocks, needs, play, read_blocks, read_scenes
from tests.support import ROOT, Program

DOCS = ROOT / "docs"
SOURCE = ROOT / "src" / "svcrun"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PAGES = [ROOT / "README.rst", *sorted(DOCS.rglob("*.rst"))]
SCENES = [scene for page in PAGES for scene in read_scenes(page)]


@pytest.fixture
def folder(tmp_path: Path, certificates: Certificates) -> Path:
    """A folder with the files that programs of the manual read."""
    for name, path in (
        ("ca.pem", certificates.ca),
        ("cert.pem", certificates.server_cert),
        ("key.pem", certificates.server_key),
        ("client.pem", certificates.client_cert),
        ("client.key", certificates.client_key),
    ):
        (tmp_path / name).symlink_to(path)
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "module.py").write_text(APPLICATION, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("scene", SCENES, ids=str)
def test_a_program_of_the_manual_has_the_documented_output(scene: Scene, folder: Path) -> None:
    play(scene, folder)


# Internal tools, whose examples are sketches that the manual does not show.
INTERNAL = {"svcrun._util.eager", "svcrun._util.shared_stop", "svcrun._util.waiter"}

# The set-up that examples in docstrings assume.
PREAMBLE = """\
import asyncio, atexit, logging, ssl
from svcrun import Service, entrypoint, threaded
from svcrun.service import TCPServer, TLSServer, UDPServer
from {module} import *
if __name__ == "__main__":  # a process of ProcessService imports the program as well
    loop = asyncio.new_event_loop()
    atexit.register(loop.close)
"""

# The further set-up of some modules, and the libraries that their examples need.
FURTHER = {
    "svcrun.service.aiohttp": (
        "aiohttp",
        """\
import aiohttp.web
async def handle(request): ...
make_application = aiohttp.web.Application
""",
    ),
    "svcrun.service.asgi": ("aiohttp_asgi,fastapi", "from fastapi import FastAPI\n"),
    "svcrun.service.uvicorn": (
        "uvicorn,fastapi",
        "import fastapi\nrouter = fastapi.APIRouter()\n",
    ),
}

# The application that some of them name.
APPLICATION = """\
async def app(scope, receive, send):
    raise NotImplementedError(scope["type"])
"""


def modules(pattern: str) -> list[str]:
    """Name the modules of the package whose source has `pattern` in it."""
    folder = ROOT / "src"
    return [
        ".".join(path.relative_to(folder).with_suffix("").parts).removesuffix(".__init__")
        for path in sorted(folder.rglob("*.py"))
        if pattern in path.read_text(encoding="utf-8")
    ]


def docstring_scenes() -> Iterator[Scene]:
    """Find the blocks in docstrings, in the source: importing it may need an extra."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for module in modules("code-block:: python"):
        path = (ROOT / "src").joinpath(*module.split("."))
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        needed, further = FURTHER.get(module, ("", ""))
        before = Block(path, 0, "python", PREAMBLE.format(module=module) + further, {})
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            docstring = ast.get_docstring(node) if isinstance(node, kinds) else None
            for block in find_blocks(path, docstring or ""):
                if module not in INTERNAL:
                    line, hints = getattr(node, "lineno", 1), {"needs": needed, **block.hints}
                    yield Scene(dataclasses.replace(block, line=line, hints=hints), (before,))


@pytest.mark.parametrize("scene", list(docstring_scenes()), ids=str)
def test_a_program_in_a_docstring_runs(scene: Scene, folder: Path) -> None:
    play(scene, folder)


# The parts of names of modules with a session that need an extra.
LIBRARIES = {"cron": "croniter", "raven": "raven", "sentry": "sentry_sdk"}


@pytest.mark.parametrize("module", modules(">>> "))
def test_an_interactive_session_in_a_docstring_prints_the_output_shown(
    module: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, library in LIBRARIES.items():
        if name in module:
            pytest.importorskip(library)
    loaded = importlib.import_module(module)
    with capsys.disabled():  # one of them shows the type of stderr
        result = doctest.testmod(loaded, optionflags=doctest.ELLIPSIS)
    assert result.failed == 0


def test_every_block_is_in_a_language_that_is_checked_here() -> None:
    found = {(page.name, block.language) for page in PAGES for block in read_blocks(page)}
    checked = {"python", "console", "text", "sh", "ini", "dockerfile", "nginx", "yaml"}
    assert {language for _, language in found} <= checked
    # Each of these has a test.
    assert {it for it in found if it[1] in {"ini", "dockerfile", "yaml"}} == {
        ("stop.rst", "yaml"),
        ("health.rst", "yaml"),
        ("systemd.rst", "ini"),
        ("socket-activation.rst", "ini"),
        ("load-balancer.rst", "ini"),  # for HAProxy, which runs beside the program
        ("container.rst", "dockerfile"),
    }


def test_every_output_and_terminal_session_follows_its_program() -> None:
    for page in PAGES:
        languages = [block.language for block in read_blocks(page)]
        first = languages.index("python") if "python" in languages else len(languages)
        assert {"console", "text"}.isdisjoint(languages[:first]), page


@pytest.mark.parametrize(
    "block",
    [block for page in PAGES for block in read_blocks(page) if block.language == "sh"],
    ids=str,
)
def test_the_shell_commands_of_the_manual_run(block: Block, tmp_path: Path) -> None:
    if block.page.name == "README.rst":  # whose commands set up this very test
        subprocess.run(["bash", "-n", "-c", block.text], check=True)
    elif needs(block.text, "openssl"):
        pytest.skip("needs openssl")
    else:
        subprocess.run(["bash", "-ec", block.text], check=True, cwd=tmp_path)


def one_block(page: str, language: str) -> str:
    """Return the only block of a page in one language."""
    (block,) = (it for it in read_blocks(DOCS / page) if it.language == language)
    return block.text


def test_the_unit_of_systemd_waits_longer_than_the_program_does() -> None:
    unit = ConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]  # the way to keep the case
    unit.read_string(one_block("howto/systemd.rst", "ini"))
    timeout = re.search(r"SVCRUN_SHUTDOWN_TIMEOUT=(\d+)", one_block("howto/systemd.rst", "ini"))
    assert timeout is not None
    assert int(unit["Service"]["TimeoutStopSec"]) > int(timeout[1])


def test_the_deployment_of_kubernetes_waits_longer_than_the_program_does() -> None:
    text = one_block("howto/stop.rst", "yaml")
    limit = re.search(r"terminationGracePeriodSeconds: (\d+)", text)
    assert limit is not None
    values = dict(re.findall(r'name: (SVCRUN_\w+)\n *value: "(\d+)"', text))
    assert values.keys() == {"SVCRUN_DRAIN_DELAY", "SVCRUN_SHUTDOWN_TIMEOUT"}
    assert values.keys() <= variables_in(SOURCE)
    assert int(limit[1]) > sum(map(int, values.values()))


def test_the_dockerfile_installs_extras_and_sets_variables_that_exist() -> None:
    text = one_block("howto/container.rst", "dockerfile")
    extras = re.search(r"svcrun\[([\w,]+)\]", text)
    assert extras is not None
    assert set(extras[1].split(",")) <= set(PROJECT["project"]["optional-dependencies"])
    assert set(re.findall(r"SVCRUN_\w+", text)) <= variables_in(SOURCE)


def variables_in(path: Path) -> set[str]:
    """Return the environment variables that a file, or a folder of them, names."""
    files = path.rglob("*.py") if path.is_dir() else [path]
    return {
        name
        for file in files
        for name in re.findall(r"\bSVCRUN_[A-Z_]+[A-Z]\b", file.read_text(encoding="utf-8"))
    }


VARIABLES = sorted(variables_in(DOCS / "reference" / "environment.rst"))


def test_the_environment_variables_of_the_manual_are_those_of_the_package() -> None:
    assert set(VARIABLES) == variables_in(SOURCE)


@pytest.mark.parametrize("variable", [it for it in VARIABLES if "DATE" not in it])
def test_an_environment_variable_with_a_bad_value_is_an_error_that_names_it(
    variable: str, run_program: Callable[..., Program]
) -> None:
    # In a process of its own: that of plug-ins is read once.
    outcome = run_program(
        "import svcrun\nsvcrun.entrypoint()", env={variable: "neither this nor that"}
    ).wait()
    assert outcome.returncode == 1
    assert re.search(f"^svcrun.*{variable}", outcome.stderr.splitlines()[-1])


def test_every_exported_name_is_in_the_reference() -> None:
    reference = "".join(page.read_text(encoding="utf-8") for page in (DOCS / "reference").iterdir())
    documented = set(re.findall(r"\.\. (?:auto\w+|data):: (?:[\w.]+\.)?(\w+)", reference))
    documented |= {"entrypoint", "__version__", "version_info"}
    # Those of `errors` come with their module.
    documented |= {name for name in vars(errors) if not name.startswith("_")}
    exported = {*svcrun.__all__, *service.__all__, *log.__all__, *thread_pool.__all__}
    for path in (SOURCE / "service").glob("[a-z]*.py"):  # to import them may need an extra
        found = re.search(
            r"^__all__ = (\(.*?\))$", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
        )
        assert found, path
        exported |= set(ast.literal_eval(found[1]))
    assert exported - {"parameter"} <= documented  # which is for the services of this package


def test_the_diagram_and_the_table_of_states_show_the_legal_moves() -> None:
    moves = {(old.name, new.name) for old, after in TRANSITIONS.items() for new in after}
    diagram = (DOCS / "explanation" / "states.svg").read_text(encoding="utf-8")
    assert set(re.findall(r'id="([A-Z]+)-([A-Z]+)"', diagram)) == moves
    table = (DOCS / "explanation" / "lifecycle.rst").read_text(encoding="utf-8")
    rows = re.findall(r"^``([A-Z]+)`` +((?:[A-Z]+, )*[A-Z]+)  ", table, re.MULTILINE)
    assert {(old, new) for old, after in rows for new in after.split(", ")} == moves


ARCHITECTURE = (DOCS / "explanation" / "architecture.rst").read_text(encoding="utf-8")


def test_the_layers_of_the_manual_are_those_that_the_linter_checks() -> None:
    section = ARCHITECTURE.split("\nLayers\n------")[1].split("\nOne owner of the states")[0]
    tables = section.split("Within ``service``:")
    contracts = PROJECT["tool"]["importlinter"]["contracts"]
    layered = [it for it in contracts if it["type"] == "layers"]
    for table, contract, folder in zip(tables, layered, (SOURCE, SOURCE / "service"), strict=True):
        shown = re.findall(r"^    \* - ``(\w+)``$", table, re.MULTILINE)
        names = [name for layer in contract["layers"] for name in re.findall(r"\w+", layer)]
        existing = [it for it in names if (folder / it).is_dir() or (folder / f"{it}.py").is_file()]
        assert shown == existing


def test_the_walks_of_the_manual_name_files_and_classes_that_exist() -> None:
    steps = re.findall(
        r"^#\. ``([\w/]+\.py)``: (.*?)(?=^#|^\S)", ARCHITECTURE, re.DOTALL | re.MULTILINE
    )
    assert len(steps) >= 20
    for path, text in steps:
        source = (SOURCE / path).read_text(encoding="utf-8")
        subject = re.search(r"``([A-Z]\w+)(?:\.(\w+)\(\))?``", text)
        if subject is not None and not text.startswith("``start()``"):
            assert f"class {subject[1]}" in source, (path, text)
            assert subject[2] is None or f"def {subject[2]}(" in source, (path, text)
