"""Log records, which costs time in the calling thread and in others."""

import logging
import time
from collections.abc import Callable

from benchmarks.programs.protocol import answer, requests, run

log = logging.getLogger("benchmark")

Flush = Callable[[], object]


def baseline(_format: str) -> Flush:
    """Configure logging with ``logging.basicConfig()``: a stream handler for stderr."""
    logging.basicConfig(level=logging.INFO)
    return lambda: None


def svcrun(log_format: str) -> Flush:
    """Configure logging as an entrypoint does."""
    from svcrun.log import basic_config

    return basic_config(level="info", log_format=log_format).flush


def main(side: str, log_format: str) -> None:
    """Log the requested number of records, and answer with the cost of one."""
    flush = {"baseline": baseline, "svcrun": svcrun}[side](log_format)
    for records in requests():
        process, caller = time.process_time(), time.thread_time()
        for number in range(records):
            log.info("request %d of %s took %.3f s", number, "alice", 0.25)
        caller = time.thread_time() - caller
        flush()
        process = time.process_time() - process
        answer({"caller": caller / records, "process": process / records})


if __name__ == "__main__":
    run(main)
