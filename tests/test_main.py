"""Laws of ``python -m svcrun`` (C2, C31)."""

import subprocess
import sys
from datetime import datetime, timedelta

import pytest

from tests.support import PATIENCE, STRICT, has

needs_croniter = pytest.mark.skipif(not has("croniter"), reason="needs croniter")


def svcrun(*arguments: str, code: str = "") -> subprocess.CompletedProcess[str]:
    how = ("-c", code) if code else ("-m", "svcrun")
    return subprocess.run(
        [sys.executable, *STRICT, *how, *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


@needs_croniter
def test_the_cron_command_prints_the_next_times_with_their_offsets() -> None:
    outcome = svcrun("cron", "*/5 * * * *", "--timezone", "Asia/Kolkata", "-n", "3")
    assert outcome.returncode == 0, outcome.stderr
    assert not outcome.stderr
    times = [datetime.fromisoformat(line.split()[0]) for line in outcome.stdout.splitlines()]
    assert len(times) == 3
    assert {it.utcoffset() for it in times} == {timedelta(hours=5, minutes=30)}
    assert {times[1] - times[0], times[2] - times[1]} == {timedelta(minutes=5)}


@needs_croniter
def test_the_cron_command_prints_ten_times_in_utc_by_default() -> None:
    outcome = svcrun("cron", "@daily")
    assert outcome.returncode == 0
    lines = outcome.stdout.splitlines()
    assert len(lines) == 10
    assert all("T00:00:00+00:00 " in line for line in lines)


@needs_croniter
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["* * * *"], "spec='* * * *'"),
        (["0 0 31 2 *"], "spec='0 0 31 2 *'"),
        (["* * * * *", "--timezone", "Mars/Olympus"], "timezone must be"),
        (["* * * * *", "-n", "0"], "0"),
        (["* * * * *", "-n", "many"], "many"),
        (["@yearly", "-n", "9000"], "the year 9999"),
        ([], "SPEC"),
    ],
)
def test_bad_input_is_one_message_and_no_traceback(arguments: list[str], message: str) -> None:
    outcome = svcrun("cron", *arguments)
    assert outcome.returncode == 2
    assert not outcome.stdout
    assert message in outcome.stderr
    assert "Traceback" not in outcome.stderr


@needs_croniter
def test_a_closed_output_pipe_is_no_error() -> None:
    command = [sys.executable, *STRICT, "-m", "svcrun", "cron", "* * * * *", "-n", "20000"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
        process.wait(PATIENCE)


def test_without_a_command_the_help_lists_the_commands() -> None:
    outcome = svcrun()
    assert outcome.returncode == 2
    assert "COMMAND" in outcome.stderr
    assert "cron" in svcrun("--help").stdout


WITHOUT = """
import sys
sys.modules["croniter"] = None
"""


@pytest.mark.parametrize(
    ("module", "named"),
    [
        ("svcrun.cron", "svcrun.cron"),
        ("svcrun.service.cron", "svcrun.service.cron"),
    ],
)
def test_without_croniter_the_error_names_the_extra_to_install(module: str, named: str) -> None:
    outcome = svcrun(code=f"{WITHOUT}import {module}")
    message = f"ImportError: {named} needs croniter: pip install 'svcrun[cron]'"
    assert outcome.stderr.splitlines()[-1] == message


def test_without_croniter_the_command_names_the_extra_to_install() -> None:
    outcome = svcrun(
        "cron", "@daily", code=f"{WITHOUT}from svcrun.__main__ import main; sys.exit(main())"
    )
    assert outcome.returncode == 2
    assert "pip install 'svcrun[cron]'" in outcome.stderr
    assert "Traceback" not in outcome.stderr
