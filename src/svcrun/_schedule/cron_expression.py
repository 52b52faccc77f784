"""What a cron line means: croniter reads it, and this settles what it leaves to chance.

croniter works on what clocks show in the zone of the job. What a change of the clocks does to that
follows the rule of :class:`CronSpec`.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING

try:
    from croniter import CroniterBadDateError, CroniterError, croniter
except ImportError as error:
    msg = "svcrun.cron needs croniter: pip install 'svcrun[cron]'"
    raise ImportError(msg) from error

from svcrun._schedule.local_time import LocalTime, get_zone
from svcrun.errors import ParameterError, ParameterTypeError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import tzinfo

__all__ = ("CronSpec",)

_ACCEPTED = (
    "minute hour day-of-month month day-of-week, seconds after that if needed, "
    "or @hourly, @daily, @midnight, @weekly, @monthly, @yearly, @annually"
)

_HOURS = 24
_MINUTE, _DAY, _MONTH, _WEEKDAY, _SECOND = 0, 2, 3, 4, 5  # the numbers of these fields
_LOWEST = (0, 0, 1, 1, 0, 0)
_HIGHEST = (59, 23, 31, 12, 6, 59)
_MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
_WEEKDAYS = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"]
_WILDCARD = re.compile(r"(\*|0-59)(/\d+)?|0/\d+", re.ASCII)
_RANGE = re.compile(r"(\w+)-(\w+)(?:/\d+)?", re.ASCII)


class CronSpec:
    """The times that a cron line names.

    :param text: five fields (minute, hour, day of month, month, day of week), or six with seconds
        last, or ``@hourly`` and its kin.
    :param timezone: the name of the zone that the times are meant in, or a ``tzinfo``.

    Where clocks are set, this is the rule:

    * a time that does not exist comes once, right after the gap;
    * a time that comes twice counts once, at its first coming;
    * with every hour in the hour field, though, time elapses as it does: what matches what clocks
      show counts, be it for the second time.

    :raises ValueError: if the line can't be understood, or never comes true; if there is no such
        zone.
    :raises TypeError: if something is of the wrong type.

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
        self._cron = _read(text)
        hours = self._cron.expanded[1]
        self._is_every_hour = "*" in hours or len(set(hours)) == _HOURS
        self.has_wildcard = any(
            _is_wildcard(self._cron.expressions[field], self._cron.expanded[field])
            for field in (_MINUTE, _SECOND)
            if field < len(self._cron.expanded)
        )
        """Whether its minutes or seconds have a wildcard, so that it has no fixed times."""
        try:
            self._match(0)
        except CroniterBadDateError:
            raise ParameterError("cron", "spec", text, "one that comes true some day") from None

    def next(self, after: float) -> int:
        """Return the first instant past `after` that is named; both in seconds since the epoch."""
        instant = int(after // 1)
        return self._next_elapsing(instant) if self._is_every_hour else self._next_shown(instant)

    def upcoming(self, n: int, after: datetime | None = None) -> list[datetime]:
        """Return the next `n` times in the zone, the first of them past `after`, now by default."""
        instants = self._from((datetime.now(UTC) if after is None else after).timestamp())
        return [self.local(next(instants)) for _ in range(n)]

    def local(self, instant: float) -> datetime:
        """Return `instant` in the zone."""
        return datetime.fromtimestamp(instant, self.zone)

    def _from(self, after: float) -> Iterator[int]:
        while True:
            after = self.next(after)
            yield after

    def _match(self, shown: int) -> int:
        """Return the first time past `shown` that croniter finds, both as clocks show it."""
        return int(self._cron.get_next(float, start_time=float(shown), update_current=False))

    def _next_shown(self, instant: int) -> int:
        """Return the next instant: each time that clocks should show has one."""
        shown, fold = self._local.at(instant)
        if fold:
            # All that clocks show until the end of the fold has come already; to look through it
            # second by second would take long.
            first, _ = self._local.offsets(shown)
            shown = self._local.change(shown) + first - 1
        while True:
            shown = self._match(shown)
            first, second = self._local.offsets(shown)
            found = self._local.change(shown) if first < second else shown - first
            if found > instant:
                return found

    def _next_elapsing(self, instant: int) -> int:
        """Return the next instant: whenever clocks do show one of the times."""
        local = self._local
        shown, is_second_coming = local.at(instant)
        first, second = local.offsets(shown)
        found = self._match(shown)
        fold_end = shown  # what clocks show at the end of the fold that `instant` is in, if it is
        if first > second:
            change = local.change(shown)
            fold_end = change + first
            if not is_second_coming and found >= fold_end:
                is_second_coming = 1
                found = self._match(change + second - 1)
        while True:
            first, second = local.offsets(found)
            if first >= second:
                return found - (second if is_second_coming and found < fold_end else first)
            found = self._match(local.change(found) + second - 1)  # clocks never show it

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.text!r} in {self.zone}>"


def _read(text: str) -> croniter:
    """Have croniter read a line, but for what it does not take as others do."""
    line = text.lower().strip()
    if not line.startswith("@"):
        fields = line.split()
        if len(fields) not in {5, 6}:
            raise ParameterError("cron", "spec", text, f"{_ACCEPTED} ({len(fields)} fields found)")
        if fields[_DAY] not in {"*", "?"} and re.search("#|l", fields[_WEEKDAY]):
            # croniter takes that for neither of the two, nor for both.
            accepted = "either a day of the month or an nth weekday, with '*' for the other"
            raise ParameterError("cron", "spec", text, accepted)
        line = " ".join(
            ",".join(_check_range(text, number, part) for part in field.split(","))
            for number, field in enumerate(fields)
        )
    try:
        return croniter(line)
    except (CroniterError, ValueError, KeyError, TypeError) as error:
        raise ParameterError("cron", "spec", text, f"{_ACCEPTED} ({error})") from None


def _is_wildcard(field: str, values: list[str]) -> bool:
    """Return whether a field of minutes or seconds has a wildcard, such as ``*`` or ``*/5``.

    :param values: the values of the field; ``*/60`` has one value, and so is not a wildcard.
    """
    parts = field.split(",")
    return values == ["*"] or (len(values) > 1 and any(map(_WILDCARD.fullmatch, parts)))


def _check_range(text: str, number: int, part: str) -> str:
    """Return `part` of a field as croniter understands it.

    A range like 5-1 is refused, which croniter takes for 5-59,0-1. One like 5-5 is just 5; croniter
    takes it for the whole field.
    """
    found = _RANGE.fullmatch(part)
    if found is None:
        return part
    low, high = (_value(number, end) for end in found.groups()[:2])
    if low is None or high is None:
        return part
    if low == high:
        return found[1]
    if number == _WEEKDAY and high == 0:
        high = 7  # fri-sun
    if low > high:
        ends = f"{found[1]}-{_HIGHEST[number]},{_LOWEST[number]}-{found[2]}"
        raise ParameterError("cron", "spec", text, f"ranges that run forward, as in {ends}")
    return part


def _value(number: int, end: str) -> int | None:
    names = {_MONTH: ["", *_MONTHS], _WEEKDAY: _WEEKDAYS}.get(number, [])
    if end in names:
        return names.index(end)
    return int(end) if end.isdecimal() else None
