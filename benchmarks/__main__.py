"""The command: ``python -m benchmarks [TARGET ...]``."""

import argparse
import os
import platform
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import report, runner
from benchmarks.cases import Budget, Case, Target, Unavailable
from benchmarks.processes import program, this_python, write_bytecode
from benchmarks.targets import (
    accept,
    burst,
    connections,
    http,
    imports,
    insight,
    lifecycle,
    log,
    recurring,
    reports,
    shutdown,
    tcp,
    termination,
    tls,
    udp,
)

MODULES = (
    imports,
    lifecycle,
    tcp,
    tls,
    accept,
    burst,
    connections,
    udp,
    http,
    recurring,
    log,
    insight,
    reports,
    shutdown,
    termination,
)
TARGETS = [module.TARGET for module in MODULES]

LOOPS = ("stock", "uvloop")
LIBRARIES = ("aiomisc", "apscheduler", "aiohttp", "aiohttp_asgi", "uvicorn")


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    targets = [
        target for target in TARGETS if not options.targets or target.name in options.targets
    ]
    raise_descriptor_limit()
    write_bytecode(options.python)
    with program(options.python, "about", libraries=["uvloop", *options.also]) as asked:
        about: dict[str, Any] = asked.answer()
    installed: dict[str, str] = about["libraries"]
    loops = [loop for loop in options.loop or LOOPS if loop == "stock" or loop in installed]
    if not loops:
        print(f"uvloop is not installed for {options.python}", file=sys.stderr)
        return 2
    also = [library for library in options.also if library in installed]
    budget = Budget(options.python, loops, also, options.scale)

    began = time.monotonic()
    about |= {
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors",
        "load": os.getloadavg()[0],
        "rounds": options.rounds,
        "scale": options.scale,
    }
    print(headline(about), flush=True)
    cases, skipped = plan(targets, budget)
    rows = runner.measure(cases, options.rounds, show_progress)
    about["seconds"] = round(time.monotonic() - began, 1)
    show_progress("")
    for line in report.table(rows, targets, skipped, also):
        print(line)
    print(f"\n{report.verdict(rows)}, in {about['seconds']:.0f} s")
    if options.json:
        options.json.write_text(report.as_json(rows, about) + "\n", encoding="utf-8")
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    names = [target.name for target in TARGETS]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure svcrun against plain asyncio, in the same run and as ratios.",
        epilog="A ratio is the cost of svcrun divided by that of plain asyncio: less is better. "
        "It is the median of all turns, with the range of the middle half in brackets. A target "
        "with a unit is a limit for the number of svcrun, whatever the ratio.",
    )
    parser.add_argument(
        "targets",
        nargs="*",
        metavar="TARGET",
        choices=[[], *names],
        help=f"a target to measure: {', '.join(names)}; all by default",
    )
    parser.add_argument(
        "--loop",
        action="append",
        choices=LOOPS,
        help="an event loop to measure on; both by default if uvloop is installed",
    )
    parser.add_argument(
        "--rounds", type=positive, help="the number of rounds with fresh processes (3)"
    )
    parser.add_argument(
        "--scale", type=float, help="a factor for the amount of work in each measurement (1.0)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="take about a minute: 1 round, scale 0.3"
    )
    parser.add_argument(
        "--also",
        action="append",
        choices=LIBRARIES,
        default=[],
        help="another library to measure, if it is installed",
    )
    parser.add_argument(
        "--python",
        default=this_python(),
        help="the interpreter to measure (this one)",
    )
    parser.add_argument("--json", type=Path, help="a file for all measurements")
    options = parser.parse_args(arguments)
    options.rounds = options.rounds or (1 if options.quick else 3)
    options.scale = options.scale or (0.3 if options.quick else 1.0)
    return options


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {text}")
    return number


def plan(targets: Sequence[Target], budget: Budget) -> tuple[list[Case], dict[str, str]]:
    """Return the cases, and the reasons for which targets are skipped, wholly or in part."""
    cases: list[Case] = []
    skipped: dict[str, str] = {}
    for target in targets:
        try:
            cases.extend(target.cases(budget))  # keeps the cases before an error
        except Unavailable as reason:
            skipped[target.name] = str(reason)
    return cases, skipped


def headline(about: dict[str, Any]) -> str:
    libraries = "".join(f", {name} {version}" for name, version in about["libraries"].items())
    rounds = f"{about['rounds']} round{'s' * (about['rounds'] > 1)} at scale {about['scale']:g}"
    line = f"{about['python']}{libraries}; {about['machine']}; {rounds}"
    if about["load"] > (os.cpu_count() or 1) / 2:
        line += f"\nOther programs run on this machine (load {about['load']:.1f}); expect noise."
    return line


def show_progress(text: str) -> None:
    """Show a line of progress on a terminal."""
    if sys.stderr.isatty():
        print(f"\r{text:<60}\r", end="", file=sys.stderr, flush=True)


def raise_descriptor_limit() -> None:
    """Raise the limit of file descriptors to its maximum; the programs inherit it."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


if __name__ == "__main__":
    sys.exit(main())
