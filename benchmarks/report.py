"""Format the measurements as a table or as JSON."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from benchmarks.cases import BASELINE, SVCRUN, Metric, Target
from benchmarks.runner import Row

WIDTH = 42

KILOBYTE = 1000

UNITS = {"s": 1.0, "ms": 1e3, "us": 1e6}


def header(also: Sequence[str]) -> str:
    """Return the line above the columns."""
    others = "".join(f"{side:>14}" for side in also)
    return (
        f"  {'':{WIDTH}} {'loop':6} {'baseline':>9} {'svcrun':>9}  "
        f"{'ratio':>5} {'(middle half)':13} {'target':>7}     {others}"
    ).rstrip()


def line(row: Row, also: Sequence[str]) -> str:
    """Return the line of one metric."""
    low, high = row.middle_half()
    asked = limits(row.metric)
    show = SHOW[row.metric.unit]
    spread = f"({low:.2f}-{high:.2f})"
    verdict = {True: "ok", False: "over", None: ""}[row.is_good]
    others = "".join(f"{row.ratio(s):14.2f}" if s in row.samples else " " * 14 for s in also)
    return (
        f"  {row.metric.name:{WIDTH}} {row.loop:6} {show(row.median(BASELINE)):>9} "
        f"{show(row.median(SVCRUN)):>9}  {row.ratio():5.2f} {spread:13} {asked:>7} "
        f"{verdict:4}{others}"
    ).rstrip()


def limits(metric: Metric) -> str:
    """Format the limits of a metric: a ratio, or a number with its unit."""
    limit = [] if metric.limit is None else [f"{metric.limit:.2f}"]
    bound = [] if metric.bound is None else [SHOW[metric.unit](metric.bound)]
    return ", ".join(limit + bound)


def duration(seconds: float) -> str:
    """Format a time with three digits.

    >>> duration(0.0123)
    '12.3 ms'
    """
    scaled = ((unit, seconds * factor) for unit, factor in UNITS.items())
    unit, value = next((pair for pair in scaled if pair[1] >= 1), ("ns", seconds * 1e9))
    digits = max(0, 2 - math.floor(math.log10(value)))
    return f"{value:.{digits}f} {unit}"


def size(number: float) -> str:
    """Format a number of bytes with three digits.

    >>> size(3612)
    '3.61 KB'
    """
    return f"{number:.0f} B" if number < KILOBYTE else f"{number / KILOBYTE:.3g} KB"


SHOW = {"s": duration, "B": size, "lost": "{:.0f} lost".format}


def table(
    rows: Iterable[Row], targets: Sequence[Target], skipped: Mapping[str, str], also: Sequence[str]
) -> Iterator[str]:
    """Return the lines of the table, target by target."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.target, []).append(row)
    for target in targets:
        yield ""
        yield f"{target.name}"
        yield from (f"  {text}" for text in target.description.splitlines())
        if target.name in skipped:
            yield f"  skipped: {skipped[target.name]}"
        if target.name in found:
            yield header(also)
            yield from (line(row, also) for row in found[target.name])


def verdict(rows: Sequence[Row]) -> str:
    """Return how many targets are reached."""
    limited = [row for row in rows if row.is_good is not None]
    good = sum(1 for row in limited if row.is_good)
    return f"{good} of {len(limited)} targets reached"


def as_json(rows: Iterable[Row], about: Mapping[str, Any]) -> str:
    """Return all measurements; times are in seconds, memory is in bytes."""
    found = [
        {
            "target": row.target,
            "loop": row.loop,
            "name": row.metric.name,
            "unit": row.metric.unit,
            "ratio": row.ratio(),
            "limit": row.metric.limit,
            "bound": row.metric.bound,
            "ok": row.is_good,
            "also": {
                side: row.ratio(side) for side in row.samples if side not in (BASELINE, SVCRUN)
            },
            "samples": row.samples,
        }
        for row in rows
    ]
    return json.dumps({"about": about, "rows": found}, indent=2)
