"""Parse cron expressions, and find their next times in a time zone.

croniter parses an expression and finds its times as a clock in the zone shows them. This module
converts between these and instants, and decides what a change of the clocks does: see the rules of
:class:`CronSpec`.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

try:
    from croniter import CroniterBadDateError, CroniterError, croniter
except ImportError as error:
    msg = "svcrun.cron needs croniter: pip install 'svcrun[cron]'"
    raise ImportError(msg) from error

from svcrun._schedule.local_time import LocalTime, get_zone
from svcrun.errors import ParameterTypeError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import tzinfo

__all__ = ("CronSpec",)


class _Field(NamedTuple):
    name: str
    low: int
    high: int
    names: tuple[str, ...] = ()
    """The names of the values, from `low` on."""


_FIELDS = (
    _Field("minute", 0, 59),
    _Field("hour", 0, 23),
    _Field("day of month", 1, 31),
    _Field(
        *("month", 1, 12),
        ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"),
    ),
    _Field("day of week", 0, 7, ("sun", "mon", "tue", "wed", "thu", "fri", "sat")),
    _Field("second", 0, 59),
)
_MINUTE, _HOUR, _DAY, _WEEKDAY, _SECOND = 0, 1, 2, 4, 5  # indices of fields
_SUNDAY = 7  # and 0
_HOURS = 24
_FIELD_COUNTS = (5, 6)

_ACCEPTED = "minute hour day-of-month month day-of-week [second], or @daily and the like"
_SHORTCUTS = "@hourly, @daily, @midnight, @weekly, @monthly, @yearly or @annually"

_WILDCARD = re.compile(r"(\*|0-59)(/\d+)?|0/\d+", re.ASCII)
_RANGE = re.compile(r"(\w+)-(\w+)(?:/\d+)?", re.ASCII)
_VALUE = re.compile(r"(\d+)(?:/\d+)?", re.ASCII)


class CronSpec:
    """The times of a cron expression.

    :param text: five fields (minute, hour, day of month, month, day of week), six with seconds
        last, or ``@hourly``, ``@daily``, ``@midnight``, ``@weekly``, ``@monthly``, ``@yearly``,
        ``@annually``.
    :param timezone: the time zone of the expression, a name or a ``tzinfo``; UTC by default.

    These rules apply where clocks are set forward or back:

    * a time that does not exist is called once, right after the gap;
    * a time that occurs twice is called once, the first time;
    * if the hour field names every hour, calls follow elapsed time: a time that occurs twice is
      called twice, and one that does not exist is not called.

    :raises ValueError: naming the field of an expression that is wrong; if the expression never
        matches a date; if there is no such time zone.
    :raises TypeError: if `text` or `timezone` has the wrong type.

    >>> from datetime import datetime, UTC
    >>> from svcrun.cron import CronSpec
    >>> spec = CronSpec("30 2 * * *", timezone="Europe/Berlin")
    >>> for when in spec.upcoming(3, after=datetime(2026, 3, 28, tzinfo=UTC)):
    ...     print(when)
    2026-03-28 02:30:00+01:00
    2026-03-29 03:00:00+02:00
    2026-03-30 02:30:00+02:00
    """

    def __init__(self, text: str, timezone: str | tzinfo = "UTC") -> None:
        if not isinstance(text, str):
            raise ParameterTypeError("cron", "spec", text, _ACCEPTED)
        self.text = text
        self.zone = get_zone("cron", timezone)
        self._local = LocalTime(self.zone)
        self._cron = _parse(text)
        hours = self._cron.expanded[_HOUR]
        self._is_every_hour = "*" in hours or len(set(hours)) == _HOURS
        self.has_wildcard = any(
            _is_wildcard(self._cron.expressions[field], self._cron.expanded[field])
            for field in (_MINUTE, _SECOND)
            if field < len(self._cron.expanded)
        )
        """Whether the minute or second field has a wildcard, so that there are no fixed times."""
        try:
            self._match(0)
        except CroniterBadDateError:
            raise _error(text, "the cron expression never matches") from None

    def next(self, after: float) -> int:
        """Return the first time past `after`, both as instants in seconds since the epoch."""
        instant = int(after // 1)
        return self._next_elapsed(instant) if self._is_every_hour else self._next_shown(instant)

    def upcoming(self, n: int, after: datetime | None = None) -> list[datetime]:
        """Return the next `n` times past `after` in the time zone; `after` is now by default."""
        instants = self._from((datetime.now(UTC) if after is None else after).timestamp())
        return [self.local(next(instants)) for _ in range(n)]

    def local(self, instant: float) -> datetime:
        """Return `instant` as a time in the time zone."""
        return datetime.fromtimestamp(instant, self.zone)

    def _from(self, after: float) -> Iterator[int]:
        while True:
            after = self.next(after)
            yield after

    def _match(self, shown: int) -> int:
        """Return the first match of croniter past `shown`, both as a clock shows them."""
        return int(self._cron.get_next(float, start_time=float(shown), update_current=False))

    def _next_shown(self, instant: int) -> int:
        """Return the next time by the clock: each time that a clock should show occurs once."""
        shown, fold = self._local.at(instant)
        if fold:
            # Clocks have shown every time until the end of the fold before. Skip them at once: to
            # match each of them could take 3600 steps.
            first, _ = self._local.offsets(shown)
            shown = self._local.change(shown) + first - 1
        while True:
            shown = self._match(shown)
            first, second = self._local.offsets(shown)
            found = self._local.change(shown) if first < second else shown - first
            if found > instant:
                return found

    def _next_elapsed(self, instant: int) -> int:
        """Return the next time by elapsed time: each time that a clock does show counts."""
        local = self._local
        shown, is_second = local.at(instant)
        first, second = local.offsets(shown)
        found = self._match(shown)
        fold_end = shown  # if `instant` is in a fold: what a clock shows at its end
        if first > second:
            change = local.change(shown)
            fold_end = change + first
            if not is_second and found >= fold_end:
                is_second = 1
                found = self._match(change + second - 1)
        while True:
            first, second = local.offsets(found)
            if first >= second:
                return found - (second if is_second and found < fold_end else first)
            found = self._match(local.change(found) + second - 1)  # skip the gap

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.text!r} in {self.zone}>"


def _error(text: str, problem: str) -> ValueError:
    return ValueError(f"cron: {problem}: spec={text!r}")


def _parse(text: str) -> croniter:
    """Return the croniter of an expression, and refuse what croniter reads in its own way."""
    line = text.lower().strip()
    fields = line.split()
    if line.startswith("@"):
        try:
            return croniter(line)
        except (CroniterError, ValueError, KeyError):
            raise _error(text, f"the shortcut must be {_SHORTCUTS}") from None
    if len(fields) not in _FIELD_COUNTS:
        problem = f"a cron expression must have 5 or 6 fields ({_ACCEPTED}), not {len(fields)}"
        raise _error(text, problem)
    if fields[_DAY] not in {"*", "?"} and re.search("#|l", fields[_WEEKDAY]):
        # croniter applies neither of the two fields.
        problem = "day of month must be '*' beside an nth day of week such as 'mon#1'"
        raise _error(text, problem)
    fields = [
        ",".join(_check_part(text, _FIELDS[index], part) for part in field.split(","))
        for index, field in enumerate(fields)
    ]
    try:
        return croniter(" ".join(fields))
    except (CroniterError, ValueError, KeyError, TypeError) as error:
        raise _error(text, _find_problem(fields) or str(error)) from None


def _find_problem(fields: list[str]) -> str | None:
    """Name the field that croniter refuses, which its own errors often do not."""
    for index, found in enumerate(fields):
        alone = ["*"] * len(fields)
        alone[index] = found
        try:
            croniter(" ".join(alone))
        except (CroniterError, ValueError, KeyError, TypeError):
            field = _FIELDS[index]
            accepted = f"'*', numbers from {field.low} to {field.high}, ranges, lists or steps"
            return f"{field.name} must be {accepted}, not {found!r}"
    return None


def _is_wildcard(field: str, values: list[str]) -> bool:
    """Return whether a field of minutes or seconds has a wildcard, such as ``*`` or ``*/5``.

    :param values: the values of the field; ``*/60`` has one value, and so is not a wildcard.
    """
    parts = field.split(",")
    return values == ["*"] or (len(values) > 1 and any(map(_WILDCARD.fullmatch, parts)))


def _check_part(text: str, field: _Field, part: str) -> str:
    """Return a part of a field as croniter understands it.

    croniter reads the range 5-1 as 5-59,0-1, which is refused here, and 5-5 as the whole field.
    """
    if single := _VALUE.fullmatch(part):
        _check_bounds(text, field, int(single[1]))
    found = _RANGE.fullmatch(part)
    if found is None:
        return part
    low, high = (_number(field, end) for end in found.groups())
    if low is None or high is None:
        return part
    for end in low, high:
        _check_bounds(text, field, end)
    if low == high:
        return found[1]
    if field is _FIELDS[_WEEKDAY] and high == 0:
        high = _SUNDAY  # fri-sun
    if low > high:
        last = _SUNDAY - 1 if field is _FIELDS[_WEEKDAY] else field.high
        remedy = f"{found[1]}-{last},{field.low}-{found[2]}"
        raise _error(text, f"{field.name} must not have the backward range {part}; write {remedy}")
    return part


def _check_bounds(text: str, field: _Field, value: int) -> None:
    if not field.low <= value <= field.high:
        problem = f"{field.name} must be between {field.low} and {field.high}, not {value}"
        raise _error(text, problem)


def _number(field: _Field, end: str) -> int | None:
    """Return an end of a range as a number, or None if it is neither a number nor a name."""
    if end in field.names:
        return field.names.index(end) + field.low
    return int(end) if end.isdecimal() else None
