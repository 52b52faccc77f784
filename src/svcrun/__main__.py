"""``python -m svcrun``: check parts of a program before it is deployed."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ("main",)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command given in `arguments`, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m svcrun", description="Check parts of a program before you deploy it."
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    cron = commands.add_parser(
        "cron",
        help="print the next times of a cron line",
        description="Print the next times of a cron line, with their offsets from UTC.",
    )
    cron.add_argument("spec", metavar="SPEC", help='the cron line, in quotes: "*/5 * * * *"')
    cron.add_argument(
        "--timezone", default="UTC", metavar="NAME", help="the time zone of the line (UTC)"
    )
    cron.add_argument(
        "-n", type=_count, default=10, metavar="N", help="the number of times to print (10)"
    )
    cron.set_defaults(run=_print_upcoming)

    options = parser.parse_args(arguments)
    code: int = options.run(options)
    return code


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number above 0, not {text!r}")
    return int(text)


def _print_upcoming(options: argparse.Namespace) -> int:
    try:
        from svcrun._schedule.cron_expression import CronSpec

        spec = CronSpec(options.spec, options.timezone)
    except (ImportError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    try:
        times = spec.upcoming(options.n)
    except (OverflowError, ValueError):
        sys.stderr.write(f"-n {options.n} goes beyond the year 9999\n")
        return 2
    try:
        for when in times:
            sys.stdout.write(f"{when.isoformat()} {when:%a}\n")
        sys.stdout.flush()
    except BrokenPipeError:
        sys.stderr.close()  # the reader has gone; the interpreter would report that at its exit
    return 0


if __name__ == "__main__":
    sys.exit(main())
