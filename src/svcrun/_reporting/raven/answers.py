"""What the answers of a Sentry server say about later."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ("LONGEST_LIMIT", "TOO_MANY_REQUESTS", "read_limit", "read_retry_after")

TOO_MANY_REQUESTS = 429

LONGEST_LIMIT = 3600.0
"""Seconds for which a server is obeyed that wants to hear nothing."""

_UNTOLD = 60.0  # seconds, where a server says "too many" and not for how long

_CATEGORIES = frozenset({"", "default", "error"})  # those that events of ours belong to


def read_limit(status: int, headers: Mapping[str, str]) -> float:
    """Return for how many seconds the server wants to hear nothing, 0 if it does not say."""
    limits = headers.get("X-Sentry-Rate-Limits")
    if limits is not None:
        return min(_read_rate_limits(limits), LONGEST_LIMIT)
    if status == TOO_MANY_REQUESTS:
        seconds = read_retry_after(headers)
        return min(_UNTOLD if seconds is None else seconds, LONGEST_LIMIT)
    return 0.0


def read_retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds of a Retry-After, which may also name a date; None if it tells nothing."""
    text = headers.get("Retry-After", "")
    seconds: float | None = None
    with suppress(ValueError, TypeError, OverflowError):
        try:
            seconds = float(text)
        except ValueError:
            when = parsedate_to_datetime(text)
            when = when if when.tzinfo else when.replace(tzinfo=UTC)
            seconds = (when - datetime.now(UTC)).total_seconds()
    return None if seconds is None or seconds != seconds else max(0.0, seconds)  # noqa: PLR0124 - not a number


def _read_rate_limits(text: str) -> float:
    """Read ``seconds:category;category:scope, ...``; no category means all of them."""
    longest = 0.0
    for limit in text.split(","):
        seconds, _, rest = limit.strip().partition(":")
        categories = rest.partition(":")[0].split(";")
        with suppress(ValueError):
            if not _CATEGORIES.isdisjoint(categories):
                longest = max(longest, float(seconds))
    return longest
