"""Log formats, levels and date formats, under aiomisc's module name."""

from svcrun.log.formats import DateFormat, LogFormat, LogLevel

__all__ = ("DateFormat", "LogFormat", "LogLevel")
