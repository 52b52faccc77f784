"""Each format has its line, needs its library, and is the default in its environment."""

import io
import json
import logging
import os
import re
import socket
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

import pytest

from svcrun._util.current_service import on_behalf_of
from svcrun.log import (
    LogFormat,
    LogLevel,
    ThreadedHandler,
    basic_config,
    create_logging_handler,
    formats,
    parse_format,
    parse_level,
)
from svcrun.service.base import Service
from tests.support import Program

root = logging.getLogger()

STREAM_FORMATS = ["stream", "plain", "color", "json", "rich", "rich_tb"]
LIBRARIES = {
    "color": "colorlog",
    "json": "pythonjsonlogger",
    "journald": "logging_journald",
    "rich": "rich",
    "rich_tb": "rich",
}
ODD_TEXTS = [
    "[/foo] [bold]x[/bold] [",
    "two\nlines",
    "nul \0 bell \a escape \x1b[31m carriage return \r",
    "lone surrogate \ud800",
    "100 %s {} $x",
    "\u65e5\u672c\u8a9e caf\u00e9 \U0001f680",
    "",
    "x" * 5000,
]


def need(log_format: str) -> None:
    if log_format in LIBRARIES:
        pytest.importorskip(LIBRARIES[log_format])


def write(log_format: str, message: object, *args: object, **options: Any) -> str:
    """Log one message and return the written text."""
    need(log_format)
    stream = io.StringIO()
    extra = options.pop("extra", None)
    exc_info = options.pop("exc_info", None)
    with basic_config("debug", log_format, stream=stream, **options):
        logging.getLogger("a.b").info(message, *args, extra=extra, exc_info=exc_info)
    return stream.getvalue()


def test_the_numbers_and_names_are_those_that_users_know() -> None:
    assert LogFormat.choices() == (
        "disabled", "stream", "color", "json", "syslog", "plain", "journald", "rich", "rich_tb",
    )  # fmt: skip
    assert list(LogFormat) == [-1, 0, 1, 2, 3, 4, 5, 6, 7]
    assert LogLevel.choices() == ("critical", "error", "warning", "info", "debug", "notset")
    assert LogLevel.default() == "info"


@pytest.mark.parametrize("value", ["json", "JSON", " json ", 2, LogFormat.json])
def test_a_format_may_be_given_by_name_or_number(value: Any) -> None:
    assert parse_format(value) is LogFormat.json


def test_an_error_names_the_parameter() -> None:
    with pytest.raises(ValueError, match=r"SVCRUN_LOG_FORMAT must be .*, not 'yaml'"):
        parse_format("yaml", "SVCRUN_LOG_FORMAT")
    with pytest.raises(ValueError, match=r"SVCRUN_LOG_LEVEL must be .*, not 'loud'"):
        parse_level("loud", "SVCRUN_LOG_LEVEL")


def test_stream_shows_level_logger_and_message() -> None:
    assert write("stream", "x %d", 1) == "INFO:a.b:x 1\n"


def test_stream_shows_the_time_where_it_is_asked_for() -> None:
    assert re.fullmatch(r"at \d{4} INFO:a.b:x\n", write("stream", "x", date_format="at %Y"))


def test_plain_shows_the_message_alone() -> None:
    assert write("plain", "x", date_format="at %Y") == "x\n"


def test_color_shows_the_level_in_its_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert write("color", "x") == "\x1b[32mINFO:a.b\x1b[0m:x\x1b[0m\n"
    assert "at 2" in write("color", "x", date_format="at %Y")


def test_color_respects_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    assert write("color", "x") == "INFO:a.b:x\n"


def test_json_is_one_object_with_time_level_logger_and_message() -> None:
    earliest = datetime.now(UTC)
    fields = json.loads(write("json", "x %d", 1))
    assert earliest <= datetime.fromisoformat(fields.pop("timestamp")) <= datetime.now(UTC)
    assert fields.pop("process") == os.getpid()
    assert fields == {
        "levelname": "INFO",
        "name": "a.b",
        "message": "x 1",
        "threadName": threading.current_thread().name,
    }


def test_json_shows_the_time_in_the_given_format() -> None:
    fields = json.loads(write("json", "x", date_format="at %Y"))
    assert re.fullmatch(r"at \d{4}", fields["asctime"])
    assert "timestamp" not in fields


def test_json_holds_a_traceback_in_one_line() -> None:
    try:
        raise LookupError("lost")
    except LookupError as error:
        written = write("json", "x", exc_info=error)
    assert written.count("\n") == 1
    assert json.loads(written)["exc_info"].endswith("LookupError: lost")


class Hostile:
    def __repr__(self) -> str:
        raise RuntimeError("do not look at me")


def test_json_accepts_extras_of_every_type() -> None:
    circle: list[Any] = []
    circle.append(circle)
    extra = {
        "number": 1,
        "nested": {"list": [1, (2, 3)], "set": {1}},
        "object": object,
        "hostile": Hostile(),
        "keys": {1: 2, (1, 2): 3, None: 4},
        "nan": float("nan"),
        "infinite": [float("inf")],
        "circle": circle,
        "bytes": b"\xff",
        "text": "\ud800",
    }
    fields = json.loads(write("json", "x", extra=extra), parse_constant=pytest.fail)
    assert fields["number"] == 1
    assert fields["nested"] == {"list": [1, [2, 3]], "set": [1]}
    assert fields["keys"] == {"1": 2, "(1, 2)": 3, "None": 4}
    assert fields["nan"] == "nan"
    assert fields["infinite"] == ["inf"]
    assert fields["text"] == "\ud800"
    assert datetime.fromisoformat(fields["timestamp"]) <= datetime.now(UTC)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_json_has_no_numbers_that_json_does_not_know(number: float) -> None:
    written = write("json", "x", extra={"number": number})
    assert json.loads(written, parse_constant=pytest.fail)["number"] == str(number)


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_json_gives_back_any_text_from_one_line(text: str) -> None:
    written = write("json", "%s", text)
    assert written.isascii()
    assert written.count("\n") == 1
    assert json.loads(written)["message"] == text


@pytest.mark.parametrize("text", ODD_TEXTS)
@pytest.mark.parametrize("log_format", ["rich", "rich_tb"])
def test_rich_shows_a_message_as_it_is(log_format: str, text: str) -> None:
    written = write(log_format, "%s", text)
    for line in filter(None, text.replace("\a", "").replace("\r", "").split("\n")):
        assert any(part in written for part in {line, line.split("\x1b")[0].split("\0")[0]})


def test_rich_breaks_no_line_without_a_terminal() -> None:
    written = write("rich", "%s", "word " * 100)
    assert written.count("\n") == 1
    assert "\x1b" not in written


def test_rich_shows_the_time_as_it_is_asked_for() -> None:
    assert write("rich", "x", date_format="<%Y>").startswith("<2")


def test_rich_accepts_a_console_of_the_program() -> None:
    pytest.importorskip("rich")
    from rich.console import Console

    stream = io.StringIO()
    console = Console(file=stream, width=40)
    written = write("rich", "%s", "word " * 20, console=console)
    assert max(map(len, written.splitlines())) <= 40
    assert not stream.getvalue()


@pytest.mark.parametrize("log_format", ["rich", "rich_tb"])
def test_rich_shows_tracebacks(log_format: str) -> None:
    try:
        raise LookupError("lost")
    except LookupError as error:
        written = write(log_format, "x", exc_info=error)
    assert "LookupError: lost" in written
    assert ("\u2502" in written) == (log_format == "rich_tb")


@pytest.mark.parametrize("log_format", STREAM_FORMATS)
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_text_can_be_written_in_any_encoding(log_format: str, encoding: str) -> None:
    need(log_format)
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding)
    with basic_config("debug", log_format, stream=stream):
        for number, text in enumerate(ODD_TEXTS):
            root.info("%d %s", number, text)
    written = raw.getvalue().decode(encoding)
    assert all(re.search(rf"\b{number}\b", written) for number in range(len(ODD_TEXTS)))


@pytest.mark.parametrize("log_format", STREAM_FORMATS)
def test_a_program_logs_in_every_format_and_encoding_without_a_warning(
    run_program: Callable[..., Program], log_format: str
) -> None:
    need(log_format)
    outcome = run_program(
        "import logging\n"
        "from svcrun.log import basic_config\n"
        f"basic_config('info', {log_format!r})\n"
        "for number in range(300): logging.info('record%dend caf\\u00e9 \\ud800', number)\n",
        env={"PYTHONIOENCODING": "ascii"},
    ).wait()
    assert outcome.returncode == 0
    assert re.findall(r"record(\d+)end", outcome.stderr) == [str(n) for n in range(300)]
    assert "Error" not in outcome.stderr


@pytest.mark.parametrize(("log_format", "library"), LIBRARIES.items())
def test_a_format_without_its_library_names_the_extra_to_install(
    run_program: Callable[..., Program], log_format: str, library: str
) -> None:
    extra = log_format.removesuffix("_tb")
    outcome = run_program(
        "import logging, sys\n"
        f"sys.modules[{library!r}] = None\n"
        "from svcrun.log import basic_config\n"
        "found = logging.getLogger().handlers[:], sys.excepthook\n"
        "try:\n"
        f"    basic_config('info', {log_format!r})\n"
        "except ImportError as error:\n"
        "    print(error)\n"
        "print(found == (logging.getLogger().handlers, sys.excepthook))\n"
    ).wait()
    message, unchanged = outcome.stdout.splitlines()
    assert f"pip install 'svcrun[{extra}]'" in message
    assert unchanged == "True"


def test_without_any_library_the_other_formats_and_the_default_work(
    run_program: Callable[..., Program],
) -> None:
    outcome = run_program(
        "import logging, sys\n"
        f"for library in {sorted(set(LIBRARIES.values()))!r}: sys.modules[library] = None\n"
        "from svcrun.log import basic_config\n"
        "for chosen in ('stream', 'plain', None):\n"
        "    with basic_config('info', chosen): logging.info('x')\n"
    ).wait()
    assert outcome.stderr == "INFO:root:x\nx\nINFO:root:x\n"


def test_disabled_makes_no_handler() -> None:
    assert create_logging_handler(LogFormat.disabled) is None


@pytest.fixture
def datagrams(tmp_path: Path) -> Iterator[socket.socket]:
    """A Unix datagram socket such as that of a log daemon."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "socket"))
        sock.settimeout(20)
        yield sock


def test_syslog_gets_priority_and_message(datagrams: socket.socket) -> None:
    with basic_config("info", "syslog", address=datagrams.getsockname()):
        root.warning("x %d", 1)
    assert datagrams.recv(100) == b"<12>x 1\0"


def test_syslog_prefers_the_socket_of_the_daemon(
    datagrams: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    from svcrun.log import syslog

    monkeypatch.setattr(syslog, "_SOCKETS", ("/nowhere", datagrams.getsockname()))
    with basic_config("info", "syslog"):
        root.info("x")
    assert datagrams.recv(100) == b"<14>x\0"


def test_syslog_without_a_socket_uses_the_udp_port(monkeypatch: pytest.MonkeyPatch) -> None:
    from svcrun.log import syslog

    monkeypatch.setattr(syslog, "_SOCKETS", ())
    handler = create_logging_handler("syslog")
    assert isinstance(handler, logging.handlers.SysLogHandler)
    assert handler.address == ("localhost", 514)
    handler.close()


@pytest.mark.parametrize(
    ("level", "priority"), [(50, 2), (40, 3), (30, 4), (25, 6), (20, 6), (10, 7), (5, 7), (60, 2)]
)
def test_journald_gets_message_priority_and_extras(
    datagrams: socket.socket, level: int, priority: int
) -> None:
    pytest.importorskip("logging_journald")
    with basic_config("notset", "journald", socket_path=datagrams.getsockname()):
        root.log(level, "x %d", 1, extra={"request": "abc"})
    lines = datagrams.recv(10_000).split(b"\n")
    assert b"MESSAGE=x 1" in lines
    assert b"PRIORITY=%d" % priority in lines
    assert b"EXTRA_REQUEST=abc" in lines


class Idle(Service):
    async def start(self) -> None:
        pass


def test_journald_gets_the_current_service(datagrams: socket.socket) -> None:
    pytest.importorskip("logging_journald")
    with basic_config("info", "journald", socket_path=datagrams.getsockname()):
        root.info("x")
        with on_behalf_of(Idle(name="inbox")):
            root.info("y")
    assert b"SERVICE_NAME" not in datagrams.recv(10_000)
    assert b"SERVICE_NAME=inbox" in datagrams.recv(10_000).split(b"\n")


def test_journald_stays_connected_when_logging_is_configured_meanwhile(
    datagrams: socket.socket,
) -> None:
    pytest.importorskip("logging_journald")
    with basic_config("info", "journald", socket_path=datagrams.getsockname()) as session:
        (handler,) = session.handlers
        assert isinstance(handler, ThreadedHandler)
        # logging.config does this to every handler of the process.
        logging.shutdown([weakref.ref(handler.target)])
        root.info("x")
        session.flush()
        assert b"MESSAGE=x\n" in datagrams.recv(10_000)
    assert handler.target.transport.socket.fileno() == -1  # type: ignore[attr-defined]


def test_a_missing_journald_raises_an_error_with_a_remedy(tmp_path: Path) -> None:
    pytest.importorskip("logging_journald")
    path = tmp_path / "nowhere"
    with pytest.raises(FileNotFoundError, match=f"'journald' needs systemd-journald.*{path}"):
        create_logging_handler("journald", socket_path=path)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_colour_if_the_library_is_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setitem(sys.modules, "colorlog", sys)
    assert LogFormat.default() == "color"
    monkeypatch.setitem(sys.modules, "colorlog", None)
    assert LogFormat.default() == "stream"


class Closed(io.StringIO):
    def __init__(self) -> None:
        super().__init__()
        self.close()


@pytest.mark.parametrize("stderr", [None, io.StringIO(), Closed(), object()])
def test_without_terminal_and_systemd_the_default_is_stream(
    monkeypatch: pytest.MonkeyPatch, stderr: TextIO | None
) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "1:2")
    monkeypatch.setattr(sys, "stderr", stderr)
    assert LogFormat.default() == "stream"


@pytest.mark.parametrize("variable", ["{0}:{1}", "{0}:1", "", "nonsense", "a:b"])
def test_under_systemd_the_journal_is_the_default(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str
) -> None:
    (tmp_path / "socket").touch()
    with (tmp_path / "stderr").open("w") as stderr:
        status = os.fstat(stderr.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", variable.format(status.st_dev, status.st_ino))
        monkeypatch.setattr(sys, "stderr", stderr)
        monkeypatch.setattr(formats, "_JOURNAL_SOCKET", str(tmp_path / "socket"))
        monkeypatch.setitem(sys.modules, "logging_journald", sys)
        right = variable == "{0}:{1}"
        assert LogFormat.default() == ("journald" if right else "stream")
        monkeypatch.setitem(sys.modules, "logging_journald", None)
        assert LogFormat.default() == "stream"
        monkeypatch.setattr(formats, "_JOURNAL_SOCKET", str(tmp_path / "nowhere"))
        monkeypatch.setitem(sys.modules, "logging_journald", sys)
        assert LogFormat.default() == "stream"
