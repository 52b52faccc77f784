"""Formats, levels and dates, in the module that has them in aiomisc."""

from svcrun.log.formats import DateFormat, LogFormat, LogLevel

__all__ = ("DateFormat", "LogFormat", "LogLevel")
