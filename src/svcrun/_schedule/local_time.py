"""Between instants and what clocks on the wall show in a time zone.

Both are counted in whole seconds: instants since the epoch, and what a clock shows as if that were
the time in UTC. Where clocks are set forward some of what they could show does not exist (a gap),
and where they are set back some of it comes twice (a fold).
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from svcrun.errors import ParameterError, ParameterTypeError

__all__ = ("LocalTime", "get_zone")

_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 - what a clock on the wall shows has no zone


def get_zone(owner: object, zone: str | tzinfo) -> tzinfo:
    """Return the time zone of that name.

    :param owner: whose parameter `timezone` it is, for the message.

    :raises ValueError, TypeError: if there is no such zone.
    """
    accepted = "the name of a time zone, like 'Europe/Berlin'"
    if isinstance(zone, tzinfo):
        return zone
    if not isinstance(zone, str):
        raise ParameterTypeError(owner, "timezone", zone, accepted)
    if zone == "UTC":
        return UTC  # needs no database
    try:
        return ZoneInfo(zone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        # An OSError is what a directory of the database gives: "Europe".
        hint = f"{accepted} (pip install tzdata where the system has no time zones)"
        raise ParameterError(owner, "timezone", zone, hint) from None


class LocalTime:
    """What clocks show in `zone`."""

    __slots__ = ("zone",)

    def __init__(self, zone: tzinfo) -> None:
        self.zone = zone

    def at(self, instant: int) -> tuple[int, int]:
        """Return what clocks show at `instant`, and 1 if they have shown that before, else 0."""
        aware = datetime.fromtimestamp(instant, self.zone)
        return instant + _seconds(aware.utcoffset()), aware.fold

    def offsets(self, shown: int) -> tuple[int, int]:
        """Return what clocks that show `shown` may be ahead of UTC, in seconds.

        The two are equal for what clocks show once. The first is the greater one in a fold, where
        it belongs to the first coming, and the smaller one in a gap, where it is from before.
        """
        naive = _EPOCH + timedelta(seconds=shown)
        first = self.zone.utcoffset(naive.replace(tzinfo=self.zone))
        second = self.zone.utcoffset(naive.replace(tzinfo=self.zone, fold=1))
        return _seconds(first), _seconds(second)

    def change(self, shown: int) -> int:
        """Return the instant at which clocks are set, for a `shown` in the gap or fold of that."""
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
