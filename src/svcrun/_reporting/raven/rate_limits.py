"""Read the rate limits in responses of a Sentry server."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ("MAX_LIMIT", "TOO_MANY_REQUESTS", "read_limit", "read_retry_after")

TOO_MANY_REQUESTS = 429

MAX_LIMIT = 3600.0
"""The longest rate limit of a server that is obeyed, in seconds; a longer one is cut to this."""

_DEFAULT_LIMIT = 60.0  # seconds, if a server limits the rate without a duration

_CATEGORIES = frozenset({"", "default", "error"})  # the categories of log events


def read_limit(status: int, headers: Mapping[str, str]) -> float:
    """Return the seconds until events may be sent again; 0 if the response has no rate limit."""
    limits = headers.get("X-Sentry-Rate-Limits")
    if limits is not None:
        return min(_read_rate_limits(limits), MAX_LIMIT)
    if status == TOO_MANY_REQUESTS:
        seconds = read_retry_after(headers)
        return min(_DEFAULT_LIMIT if seconds is None else seconds, MAX_LIMIT)
    return 0.0


def read_retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds of the header Retry-After, or until its date; None if it is not valid."""
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
    """Return the seconds of the longest limit for log events.

    :param text: ``seconds:category;category:scope, ...``; a limit without categories is for all.
    """
    longest = 0.0
    for limit in text.split(","):
        seconds, _, rest = limit.strip().partition(":")
        categories = rest.partition(":")[0].split(";")
        with suppress(ValueError):
            if not _CATEGORIES.isdisjoint(categories):
                longest = max(longest, float(seconds))
    return longest
