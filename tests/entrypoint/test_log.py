"""Laws of the log of an entrypoint: complete to the last record at every kind of end (C17)."""

import logging
import re

import pytest

from svcrun import entrypoint
from tests.entrypoint.actors import Asking
from tests.entrypoint.programs import Run
from tests.support import LoopFactory

ENDS = {
    "the block is left": ("pass", 0),
    "the block raises": ("raise ValueError", 1),
    "a signal": ("loop.call_soon(send); loop.run_forever()", 0),
    "a signal outside of the loop": ("send_later(0.05); time.sleep(60)", 0),
    "a crash": ("crash.append(1); loop.run_forever()", 1),
    "a stop that hangs": ("hang.append(1)", 70),
    "a stop that blocks": ("block.append(1)", 70),
    "sys.exit": ("sys.exit(5)", 5),
}


@pytest.mark.parametrize(("code", "exit_code"), ENDS.values(), ids=ENDS)
def test_every_record_is_written(run: Run, code: str, exit_code: int) -> None:
    outcome = run(
        f"""
        class Logging(Service):
            async def start(self):
                self.start_event.set()
                while not crash:
                    await asyncio.sleep(0.001)
                raise ValueError

            async def stop(self, exception=None):
                for number in range(300):
                    logging.info("record %d", number)
                if hang:
                    await asyncio.Event().wait()
                if block:
                    time.sleep(600)

        crash, hang, block = [], [], []
        with entrypoint(Logging(), log_flush_interval=600, shutdown_timeout=1) as loop:
            logging.info("first")
            {code}
        """
    )
    assert outcome.returncode == exit_code, outcome
    numbers = re.findall(r"^INFO:root:record (\d+)$", outcome.stderr, re.MULTILINE)
    assert numbers == [str(number) for number in range(300)]
    assert "INFO:root:first" in outcome.stderr


def test_logging_is_configured_before_the_first_start_and_as_before_afterwards(
    loop_factory: LoopFactory,
) -> None:
    found: list[tuple[int, list[logging.Handler]]] = []
    root = logging.getLogger()
    before = root.level, list(root.handlers)

    async def note() -> None:
        found.append((root.level, list(root.handlers)))

    with entrypoint(Asking(log=[], in_start=note), loop_factory=loop_factory, log_level="debug"):
        pass
    ((level, handlers),) = found
    assert level == logging.DEBUG
    assert handlers != before[1]
    assert (root.level, list(root.handlers)) == before


def test_logging_is_left_alone_if_that_is_wanted(loop_factory: LoopFactory) -> None:
    root = logging.getLogger()
    before = root.level, list(root.handlers)
    with entrypoint(loop_factory=loop_factory, log_config=False, log_level="debug"):
        assert (root.level, list(root.handlers)) == before


def test_unhandled_errors_of_the_loop_go_to_the_log(run: Run) -> None:
    outcome = run(
        """
        def fail():
            raise LookupError("in a callback")

        with entrypoint() as loop:
            loop.call_soon(fail)
            loop.run_until_complete(asyncio.sleep(0.01))
        """
    )
    assert outcome.returncode == 0
    assert "LookupError: in a callback" in outcome.stderr
    assert "ERROR:asyncio.unhandled:" in outcome.stderr


def test_handlers_of_the_program_get_every_record_and_are_not_closed(run: Run) -> None:
    outcome = run(
        """
        class Collecting(logging.Handler):
            def emit(self, record):
                records.append(record.getMessage())

            def close(self):
                say("closed", len(records))

        records = []
        handler = Collecting()
        with entrypoint(log_handlers=[handler], log_format="disabled"):
            for number in range(100):
                logging.info(number)
        say(len(records))
        """
    )
    assert outcome.returncode == 0
    assert outcome.stdout == "100\nclosed 100\n"
    assert not outcome.stderr
