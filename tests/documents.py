"""Execute the code blocks of the manual.

A block of Python is a program, which runs in a subprocess. The blocks of shell commands after it
(``console``) are its clients, and the blocks of ``text`` are its output. A command that ends in
``&`` runs until the end of the program. Blocks with a caption are files. Free ports replace those
of the manual. A comment before a block sets its options::

    .. run: exit=1

    .. code-block:: python

``exit=CODE``
    The program ends by itself with this exit code.
``signal=NAME``
    The program runs until this signal: ``SIGINT`` by default, ``none`` if a client ends it.
``logs=errors``
    The log of the program may have tracebacks.
``as=pytest``
    The block is a test module.
``needs=MODULES``
    The block is skipped without these modules.
"""

import ast
import contextlib
import re
import shlex
import shutil
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from signal import Signals
from typing import Final

import pytest

from tests.balancers import find_program, listening
from tests.support import PATIENCE, ROOT, STRICT, Program, has

DIRECTIVE: Final = re.compile(r"^( *)\.\. code-block:: *([\w-]+)$")
OPTION: Final = re.compile(r"^ +:([\w-]+):(.*)$")
HINT: Final = re.compile(r"^ *\.\. run: +(.*)$")

# The ports that the manual uses.
PORTS: Final = ("8901", "8900", "3000", "8080", "8443")

# Writes a line to stderr after the start-up, for the test to wait for.
PRELUDE: Final = """\
import os as _os
import svcrun as _svcrun
async def _announce(**_):
    _os.write(2, b"-- started\\n")
_svcrun.entrypoint.POST_START.connect(_announce)
"""


@dataclass(frozen=True)
class Block:
    """A code block with its place and its options."""

    page: Path
    line: int
    language: str
    text: str
    hints: dict[str, str]
    caption: str | None = None

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def serves(self) -> bool:
        """Whether the program runs until a signal or a client ends it."""
        called = (
            node.func for node in ast.walk(ast.parse(self.text)) if isinstance(node, ast.Call)
        )
        names = {function.attr for function in called if isinstance(function, ast.Attribute)}
        return ("run_forever" in names and "exit" not in self.hints) or "signal" in self.hints

    @property
    def only_defines(self) -> bool:
        """Whether the block only defines names for later blocks."""
        kinds = (ast.Import, ast.ImportFrom, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        return all(
            isinstance(node, kinds)
            or (isinstance(node, ast.Assign | ast.AnnAssign) and not _calls(node))
            for node in ast.parse(self.text).body
        )


def _calls(node: ast.AST) -> bool:
    return any(isinstance(part, ast.Call) for part in ast.walk(node))


@dataclass
class Scene:
    """A program of a page, with the blocks of definitions before it and its clients and output."""

    program: Block
    before: tuple[Block, ...] = ()
    after: list[Block] = field(default_factory=list)

    def __str__(self) -> str:
        return str(self.program)


@cache
def read_blocks(page: Path) -> tuple[Block, ...]:
    """Return the code blocks of a page in their order."""
    return tuple(find_blocks(page, page.read_text(encoding="utf-8")))


def find_blocks(page: Path, text: str) -> Iterator[Block]:
    """Find the code blocks in a text in reStructuredText."""
    lines = text.splitlines()
    hints: dict[str, str] = {}
    position = 0
    while position < len(lines):
        line = lines[position]
        position += 1
        if hint := HINT.match(line):
            hints = dict(item.split("=", 1) for item in hint[1].split())
        elif directive := DIRECTIVE.match(line):
            start = position
            options, body = {}, []
            while position < len(lines) and (option := OPTION.match(lines[position])):
                options[option[1]] = option[2].strip()
                position += 1
            inside = directive[1] + " "
            while position < len(lines) and (
                not lines[position].strip() or lines[position].startswith(inside)
            ):
                body.append(lines[position])
                position += 1
            source = textwrap.dedent("\n".join(body)).strip("\n") + "\n"
            yield Block(page, start, directive[2], source, hints, options.get("caption"))
            hints = {}
        elif line.strip():
            hints = {}


def read_scenes(page: Path) -> list[Scene]:
    """Return the programs of a page."""
    scenes: list[Scene] = []
    definitions: list[Block] = []
    for block in read_blocks(page):
        if block.language == "python":
            scenes.append(Scene(block, tuple(definitions)))
            if block.only_defines:
                definitions.append(block)
        elif (block.language in {"console", "text"} or block.caption) and scenes:
            scenes[-1].after.append(block)
    return scenes


def free_ports(count: int) -> list[int]:
    """Find ports that are free for TCP and UDP on both loopback addresses."""
    families = [socket.AF_INET] + [socket.AF_INET6] * has_ipv6()
    found: list[int] = []
    while len(found) < count:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port not in found and all(
            _is_free(family, kind, port)
            for family in families
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM)
        ):
            found.append(port)
    return found


def _is_free(family: int, kind: int, port: int) -> bool:
    with socket.socket(family, kind) as probe:
        try:
            probe.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", port))
        except OSError:
            return False
    return True


@cache
def has_ipv6() -> bool:
    """Check whether there is an IPv6 loopback interface."""
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def port_replacer() -> Callable[[str], str]:
    """Return a function that replaces the ports of the manual in a text by the same free ports."""
    ports = dict(zip(PORTS, map(str, free_ports(len(PORTS))), strict=True))
    pattern = re.compile(rf"\b({'|'.join(PORTS)})\b")
    return lambda text: pattern.sub(lambda match: ports[match[1]], text)


def play(scene: Scene, folder: Path) -> None:
    """Run a program and its clients, and compare their output with the manual.

    :param folder: the working directory, with the files that the program needs.
    """
    program = scene.program
    skip_without(program)
    replace = port_replacer()
    for block in (*scene.before, program, *scene.after):
        if block.caption is not None and "/" not in block.caption:
            (folder / block.caption).write_text(replace(block.text), encoding="utf-8")
    source = replace("".join(block.text for block in (*scene.before, program)))
    if program.hints.get("as") == "pytest":
        run_pytest(source, folder)
        return

    path = folder / "program.py"
    path.write_text(PRELUDE + source, encoding="utf-8")
    expected = [replace(block.text) for block in scene.after if block.language == "text"]
    clients = [replace(block.text) for block in scene.after if block.language == "console"]
    with (
        Program(path, cwd=folder, env={"SVCRUN_LOG_FORMAT": "stream"}) as running,
        contextlib.ExitStack() as background,
    ):
        if program.serves:
            running.wait_for_line("-- started", stream="stderr")
        for client in clients:
            run_console(client, folder, background)
        background.close()
        if program.serves:
            wait_for_output(running, expected)
            name = program.hints.get("signal", "SIGINT")
            if name != "none":
                running.send_signal(Signals[name])
        outcome = running.wait()

    errors = outcome.stderr.replace("-- started\n", "")
    assert outcome.returncode == int(program.hints.get("exit", "0")), errors
    missing = find_missing(expected, outcome.stdout, errors)
    assert missing is None, f"not printed: {missing!r}\n{outcome.stdout}\n{errors}"
    if not {"exit", "logs"} & program.hints.keys():
        assert "Traceback" not in errors, errors
        assert "Warning" not in errors, errors


def skip_without(program: Block) -> None:
    """Skip the test if a module or IPv6 is missing that the program needs."""
    for module in filter(None, program.hints.get("needs", "").split(",")):
        if not has(module):
            pytest.skip(f"needs {module}")
    if "::1" in program.text and not has_ipv6():
        pytest.skip("needs IPv6")


def wait_for_output(program: Program, expected: Iterable[str]) -> None:
    """Wait until a running program has printed the output that is expected before its end."""
    deadline = time.monotonic() + PATIENCE
    texts = [re.split(r"SIG(?:INT|TERM) received", text)[0] for text in expected]
    texts = [text[: text.rfind("\n") + 1] for text in texts]
    while find_missing(texts, program.stdout, program.stderr) is not None:
        if time.monotonic() > deadline or not program.is_running():
            return  # reported after its end
        time.sleep(0.02)


def find_missing(expected: Iterable[str], *streams: str) -> str | None:
    """Return the first expected line that no stream has in that order, or None.

    ``...`` matches any text in a line, and ``0.2... s`` any number of seconds, because durations
    depend on the machine.
    """
    rests = [iter(stream.splitlines()) for stream in streams]
    for line in "".join(expected).splitlines():
        if line.strip() == "...":
            continue
        text = re.sub(r"\d[\d.]*\.\.\. s\b", "... s", line.strip())
        pattern = re.compile(re.escape(text).replace(r"\.\.\.", ".*"))
        for position, rest in enumerate(rests):
            found = list(rest)
            match = next((i for i, it in enumerate(found) if pattern.fullmatch(it.strip())), None)
            rests[position] = iter(found if match is None else found[match + 1 :])
            if match is not None:
                break
        else:
            return line
    return None


def run_console(
    transcript: str, folder: Path, background: contextlib.ExitStack | None = None
) -> None:
    """Run the commands of a terminal session, and compare their output.

    :param background: ends the commands that run in the background.
    """
    for command, output in split_console(transcript):
        if background is not None and command.endswith(" &"):
            background.enter_context(run_in_background(command.removesuffix(" &"), folder))
            continue
        missing_tool = next((it for it in ("curl", "openssl") if needs(command, it)), None)
        if missing_tool is not None:
            continue
        result = subprocess.run(
            ["bash", "-c", f"{define_nc()}{command}"],
            check=False,
            capture_output=True,
            text=True,
            cwd=folder,
            timeout=PATIENCE,
            stdin=subprocess.DEVNULL,
        )
        wrong = find_missing([output], result.stdout, result.stderr)
        assert wrong is None, f"$ {command}\n{result.stdout}{result.stderr}\nexpected:\n{output}"
        assert result.returncode == 0 or output, f"$ {command}\n{result.stderr}"


def run_in_background(command: str, folder: Path) -> AbstractContextManager[None]:
    """Run a server whose last argument is its configuration, which names its ports."""
    program, *arguments = shlex.split(command)
    configuration = (folder / arguments[-1]).read_text(encoding="utf-8")
    ports = map(int, re.findall(r"(?:bind|listen) [\w.]+:(\d+)", configuration))
    return listening(folder, [find_program(program), *arguments], tuple(ports))


def needs(command: str, tool: str) -> bool:
    """Check whether a command needs a tool that is not installed."""
    return re.search(rf"\b{tool}\b", command) is not None and shutil.which(tool) is None


def define_nc() -> str:
    """Return a shell function that replaces nc if it is not installed."""
    if shutil.which("nc"):
        return ""
    return f'nc() {{ "{sys.executable}" "{ROOT / "tests" / "netcat.py"}" "$@"; }}\n'


def split_console(transcript: str) -> list[tuple[str, str]]:
    """Split a terminal session into commands, each with its output."""
    pieces = re.split(r"^\$ ", transcript, flags=re.MULTILINE)[1:]
    found = []
    for piece in pieces:
        match = re.match(r"((?:.*\\\n)*.*\n)", piece)
        assert match is not None
        found.append((match[1].strip(), piece[match.end() :]))
    return found


def run_pytest(source: str, folder: Path) -> None:
    """Run a block that is a test module."""
    path = folder / "test_block.py"
    path.write_text(source, encoding="utf-8")
    command = [sys.executable, *STRICT, "-m", "pytest", "-p", "no:cacheprovider", "-n", "0"]
    result = subprocess.run(
        [*command, "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(folder), str(path)],
        check=False,
        capture_output=True,
        text=True,
        cwd=folder,
        timeout=2 * PATIENCE,
    )
    assert result.returncode == 0, result.stdout + result.stderr
