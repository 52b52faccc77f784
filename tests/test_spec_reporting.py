"""The document's code that reports errors runs as written, against a real server.

The address of the server is replaced, and the endless loop is ended by a signal.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("raven")
pytest.importorskip("aiohttp")

from svcrun import __version__
from tests.reporting.collectors import Collector
from tests.support import Program
from tests.test_spec import DOCUMENT, read_block

Start = Callable[..., Program]

pytestmark = pytest.mark.skipif(not DOCUMENT.is_file(), reason="the document is not here")


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        yield collector


def for_collector(source: str, collector: Collector) -> str:
    """Replace the address in a block."""
    source, count = re.subn(r'"https://\w+@[\w.]+/"\s+"5530251"', f'"{collector.dsn()}"', source)
    assert count == 1
    return source


@pytest.mark.parametrize(
    ("number", "environment"), [(0, "simple_example"), (1, "full_example")], ids=["simple", "full"]
)
def test_the_raven_sender_reports_as_written(
    run_program: Start, collector: Collector, tmp_path: Path, number: int, environment: str
) -> None:
    source = for_collector(read_block("Raven service", number), collector)
    variables = {"SVCRUN_LOG_FORMAT": "stream", "SENTRY_NAME": "from-the-environment"}
    program = run_program(source, cwd=tmp_path, env=variables)
    collector.wait_for(2)
    program.terminate()
    outcome = program.wait()
    assert outcome.returncode == 0, outcome.stderr
    assert "Warning" not in outcome.stderr
    assert "secret" not in outcome.stderr
    first = collector.events[0]
    name = "example-from-svcrun" if number == 0 else "from-the-environment"
    assert first["server_name"] == name
    assert (first["environment"], first["release"]) == (environment, __version__)
    assert first["message"] == "Exception"
    (value,) = first["exception"]["values"]
    assert (value["type"], value["value"]) == ("ZeroDivisionError", "division by zero")
    frame = value["stacktrace"]["frames"][-1]
    assert (frame["function"], frame["context_line"].strip()) == ("main", "1 / 0")
