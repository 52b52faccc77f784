"""The ``rich`` and ``rich_tb`` formats, by rich."""

from __future__ import annotations

import logging
import sys
from typing import Any, TextIO

try:
    from rich.console import Console
    from rich.logging import RichHandler
except ImportError as error:
    raise ImportError(
        "svcrun.log formats 'rich' and 'rich_tb' need rich: pip install 'svcrun[rich]'"
    ) from error

__all__ = ("create_formatter",)

_MARGIN = 64  # columns for everything except the message


def create_formatter(
    stream: TextIO | None, date_format: str | None, options: dict[str, Any]
) -> logging.Formatter:
    """Return a formatter whose text is the output of ``RichHandler(**options)``."""
    return _RichFormatter(
        stream or sys.stderr, {"log_time_format": date_format or "[%X]"} | options
    )


class _Renderer(RichHandler):
    """A handler that returns its output instead of printing it."""

    def render_text(self, record: logging.LogRecord) -> str:
        with self.console.capture() as capture:
            self.emit(record)
        return capture.get()

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002, N802 - overridden
        raise  # noqa: PLE0704 - logging calls this in an except block


class _RichFormatter(logging.Formatter):
    """A formatter that renders with rich and leaves the write to the stream handler.

    A console that writes itself exits the program at a broken pipe. After a failed write it
    repeats the lost text with each record.
    """

    def __init__(self, stream: TextIO | None, options: dict[str, Any]) -> None:
        super().__init__("%(message)s")
        # Columns are for terminals. In a file or a pipe, each line of a message stays unbroken.
        self._unbroken = "console" not in options and not _is_terminal(stream)
        if "console" not in options:
            options["console"] = Console(file=stream, soft_wrap=False)
        if self._unbroken:
            options.setdefault("show_path", False)
            options.setdefault("omit_repeated_times", False)
        self._renderer = _Renderer(**options)
        self._renderer.setFormatter(logging.Formatter("%(message)s"))

    def format(self, record: logging.LogRecord) -> str:
        """Return the text of a record."""
        if not self._unbroken:
            return self._renderer.render_text(record).removesuffix("\n")
        longest = max(map(len, record.getMessage().splitlines()), default=0)
        self._renderer.console.width = max(80, longest + _MARGIN)
        lines = self._renderer.render_text(record).splitlines()
        return "\n".join(line.rstrip() for line in lines)


def _is_terminal(stream: TextIO | None) -> bool:
    try:
        return stream is not None and stream.isatty()
    except (AttributeError, ValueError):  # an object without isatty(), or closed
        return False
