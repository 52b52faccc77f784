"""Log records, and tell what a call costs the thread that calls, and what it costs altogether."""

import contextlib
import importlib
import logging
import time
from collections.abc import Callable

from benchmarks.programs.protocol import run

log = logging.getLogger("benchmark")

End = Callable[[], object]


def baseline(_format: str) -> End:
    """Configure logging with ``logging.basicConfig()``: a stream handler for stderr."""
    logging.basicConfig(level=logging.INFO)
    return logging.shutdown


def svcrun(log_format: str) -> End:
    """Configure logging as an entrypoint does."""
    from svcrun.log import basic_config

    return basic_config(level="info", log_format=log_format).close


def aiomisc(log_format: str) -> End:
    """Configure logging by an entrypoint of aiomisc."""
    library = importlib.import_module("aiomisc")
    stack = contextlib.ExitStack()
    stack.enter_context(library.entrypoint(log_level="info", log_format=log_format))
    return stack.close


def main(side: str, log_format: str, records: int) -> dict[str, float]:
    end = {"baseline": baseline, "svcrun": svcrun, "aiomisc": aiomisc}[side](log_format)
    write(records // 5)
    process, caller = time.process_time(), time.thread_time()
    write(records)
    caller = time.thread_time() - caller
    end()
    process = time.process_time() - process
    return {"caller": caller / records, "process": process / records}


def write(records: int) -> None:
    for number in range(records):
        log.info("request %d of %s took %.3f s", number, "somebody", 0.25)


if __name__ == "__main__":
    run(main)
