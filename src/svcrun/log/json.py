"""The ``json`` format, by python-json-logger."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from svcrun.errors import show

try:
    from pythonjsonlogger.core import RESERVED_ATTRS
    from pythonjsonlogger.json import JsonFormatter
except ImportError as error:
    raise ImportError(
        "svcrun.log format 'json' needs python-json-logger: pip install 'svcrun[json]'"
    ) from error

if TYPE_CHECKING:
    import logging

__all__ = ("create_formatter",)

_FIELDS = "%(levelname)s %(name)s %(message)s %(process)d %(threadName)s"
_DEPTH = 16  # levels of nested containers that are written


def create_formatter(date_format: str | None, options: dict[str, Any]) -> logging.Formatter:
    """Return a formatter that formats each record as one line with a JSON object.

    The object has ``timestamp`` (ISO 8601), ``levelname``, ``name``, ``message``, ``process``,
    ``threadName``, the attributes given as ``extra=``, ``exc_info`` with a traceback, and the
    current ``service``, if any. With a date format it has ``asctime`` instead of ``timestamp``.
    """
    defaults: dict[str, Any] = {"json_serializer": _dump, "datefmt": date_format}
    options["reserved_attrs"] = [*options.get("reserved_attrs", RESERVED_ATTRS), "serviceName"]
    if date_format:
        return _Formatter("%(asctime)s " + _FIELDS, **(defaults | options))
    # As a field of the format, the timestamp comes first.
    return _Formatter("%(timestamp)s " + _FIELDS, **(defaults | {"timestamp": True} | options))


class _Formatter(JsonFormatter):
    def add_fields(
        self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]
    ) -> None:
        """Collect the fields; a ``service`` that was given as ``extra=`` stays."""
        super().add_fields(log_data, record, message_dict)
        error = log_data.get("exc_info")
        if isinstance(error, tuple) and len(error) == 3 and isinstance(error[1], BaseException):  # noqa: PLR2004 - as of sys.exc_info()
            log_data["exc_info"] = self.formatException(error)
        service = getattr(record, "serviceName", None)
        if service is not None:
            log_data.setdefault(self.rename_fields.get("service", "service"), service)


def _dump(fields: dict[str, Any], **options: Any) -> str:
    """Return the JSON text; values that JSON cannot express become text."""
    try:
        return json.dumps(fields, allow_nan=False, **options)
    except Exception:  # noqa: BLE001 - a cycle, NaN, keys that are no text, a __repr__() that raises
        return json.dumps(_simplify(fields, options, _DEPTH), **options)


def _simplify(value: Any, options: dict[str, Any], depth: int) -> Any:
    """Replace the values that JSON cannot express by text.

    :param options: the options of ``json.dumps``.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if depth and isinstance(value, dict):
        pairs = list(value.items())  # another thread may change the dictionary
        return {_to_text(key): _simplify(item, options, depth - 1) for key, item in pairs}
    if depth and isinstance(value, (list, tuple, set, frozenset)):
        return [_simplify(item, options, depth - 1) for item in list(value)]
    try:
        json.dumps(value, **options)
    except Exception:  # noqa: BLE001 - as above
        return _to_text(value)
    return value


def _to_text(value: object) -> str:
    return value if isinstance(value, str) else show(value)
