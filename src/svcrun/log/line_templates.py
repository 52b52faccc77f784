"""A shortcut for records that differ in nothing but their messages and times."""

from __future__ import annotations

import logging

from svcrun._util.hints import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from svcrun.log.records import LazyRecord

__all__ = ("LineTemplates",)

# How many kinds of records are kept in mind.
_MANY = 64


class LineTemplates:
    """What a handler writes before and after the messages of records that are much alike.

    Most formats show of a record its level, its logger and its message. A text that differs in
    the last of them alone need not be put together by a formatter.
    """

    def __init__(self, handler: logging.StreamHandler[Any]) -> None:
        self._handler = handler
        self._settings: tuple[Any, ...] = ()
        self._found: dict[logging.LogRecord, tuple[str, str] | None] = {}

    def refresh(self) -> None:
        """Look whether the handler still writes as it did; to be called now and then."""
        handler = self._handler
        settings = handler.formatter, handler.terminator, handler.level
        if settings != self._settings or len(self._found) > _MANY:
            self._settings = settings
            self._found.clear()

    def find(self, record: LazyRecord) -> tuple[str, str] | None:
        """Return what is before and after the message of `record`; None if there is more to it."""
        shared_record = record.shared_record()
        try:
            return self._found[shared_record]
        except KeyError:
            found = self._found[shared_record] = _try_out(self._handler, record)
            return found


def _try_out(handler: logging.StreamHandler[Any], record: LazyRecord) -> tuple[str, str] | None:
    """Find out by examples what the handler writes around a message."""
    if record.levelno < handler.level:
        return None
    formatter = handler.formatter
    # One of another class may do anything.
    if formatter is not None and (type(formatter) is not logging.Formatter or formatter.usesTime()):
        return None
    # All that differs from one such record to the next differs from one example to the other.
    frames = {_frame(handler, record, number) for number in (1, 400)}
    return frames.pop() if len(frames) == 1 else None


def _frame(
    handler: logging.StreamHandler[Any], record: LazyRecord, number: int
) -> tuple[str, str] | None:
    example = record.to_record()
    for name in list(vars(example))[len(vars(record.shared_record())) :]:
        setattr(example, name, number)
    example.created = example.msecs = example.relativeCreated = number
    example.msg, example.args = "%s" * number, ("\0",) * number
    try:
        before, message, after = handler.format(example).partition("\0" * number)
    except Exception:  # noqa: BLE001 - whoever writes the record reports it
        return None
    if not message or "\0" in before + after:
        return None
    return before, after + handler.terminator
