"""Convert between instants and the times that a clock shows in a time zone.

Both are counted in whole seconds: an instant since the epoch, and the time that a clock shows as if
it were a time in UTC. Where clocks are set forward, some times do not exist (a gap). Where they are
set back, some times occur twice (a fold).
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from svcrun.errors import ParameterError, ParameterTypeError

__all__ = ("LocalTime", "get_zone")

_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 - the time that a clock shows has no zone


def get_zone(owner: object, zone: str | tzinfo) -> tzinfo:
    """Return `zone`, or the time zone of that name.

    :param owner: the object whose parameter `timezone` it is, for the error.

    :raises ValueError: if there is no time zone of that name.
    :raises TypeError: if `zone` is neither a name nor a ``tzinfo``.
    """
    accepted = "the name of a time zone such as 'Europe/Berlin'"
    if isinstance(zone, tzinfo):
        return zone
    if not isinstance(zone, str):
        raise ParameterTypeError(owner, "timezone", zone, accepted)
    if zone == "UTC":
        return UTC  # needs no database
    try:
        return ZoneInfo(zone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        # OSError: "Europe" is a directory of the database.
        hint = f"{accepted} (pip install tzdata where the system has no time zones)"
        raise ParameterError(owner, "timezone", zone, hint) from None


class LocalTime:
    """The clocks of a time zone."""

    def __init__(self, zone: tzinfo) -> None:
        self.zone = zone

    def at(self, instant: int) -> tuple[int, int]:
        """Return what a clock shows at `instant`, and 1 for the second time in a fold, else 0."""
        aware = datetime.fromtimestamp(instant, self.zone)
        return instant + _seconds(aware.utcoffset()), aware.fold

    def offsets(self, shown: int) -> tuple[int, int]:
        """Return the offsets from UTC, in seconds, of a clock that shows `shown`.

        The two are equal, except in a fold and in a gap. In a fold the first offset is the greater
        one, that of the first time. In a gap it is the smaller one, that before the gap.
        """
        naive = _EPOCH + timedelta(seconds=shown)
        first = self.zone.utcoffset(naive.replace(tzinfo=self.zone))
        second = self.zone.utcoffset(naive.replace(tzinfo=self.zone, fold=1))
        return _seconds(first), _seconds(second)

    def change(self, shown: int) -> int:
        """Return the instant at which clocks are set, for a `shown` in the gap or the fold."""
        before, after = sorted(shown - offset for offset in self.offsets(shown))
        old = self._offset(before)
        while after - before > 1:
            middle = (before + after) // 2
            if self._offset(middle) == old:
                before = middle
            else:
                after = middle
        return after

    def _offset(self, instant: int) -> int:
        return _seconds(datetime.fromtimestamp(instant, self.zone).utcoffset())


def _seconds(offset: timedelta | None) -> int:
    return 0 if offset is None else int(offset.total_seconds())
