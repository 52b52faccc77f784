"""Formats, levels and dates, under the module name that aiomisc has for them."""

from svcrun.log.formats import DateFormat, LogFormat, LogLevel

__all__ = ("DateFormat", "LogFormat", "LogLevel")
