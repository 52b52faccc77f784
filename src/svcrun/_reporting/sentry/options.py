"""Check and complete the options of sentry-sdk."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

from sentry_sdk.consts import DEFAULT_OPTIONS
from sentry_sdk.integrations import Integration
from sentry_sdk.integrations.argv import ArgvIntegration
from sentry_sdk.integrations.logging import LoggingIntegration
from sentry_sdk.integrations.modules import ModulesIntegration
from sentry_sdk.utils import Dsn

from svcrun._reporting.sentry.events import ServiceTags
from svcrun._reporting.sentry.tasks import TaskErrors
from svcrun._reporting.sentry.transport import Transport
from svcrun.errors import ParameterError, ParameterTypeError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


__all__ = ("check_dsn", "check_options", "make_options", "show_dsn")

_ACCEPTED = "https://PUBLIC_KEY@HOST/PROJECT as shown in the settings of the Sentry project"

# The client must not wait, write to stderr, or start threads that can't be ended.
_DEFAULTS: dict[str, Any] = {
    "default_integrations": False,
    "enable_backpressure_handling": False,
    "transport": Transport,
}


def check_dsn(owner: object, value: object) -> str:
    """Return a data source name as text.

    :raises ValueError: if it is malformed; the error shows neither of its keys.
    """
    text = str(value).strip()
    try:
        Dsn(text)
    except ValueError:  # its text may show the keys
        scheme, _, rest = text.partition("://")
        place = rest.rpartition("@")[2]
        shown = f"{scheme}://...@{place}" if "@" in rest else "..."
        raise ParameterError(owner, "sentry_dsn", shown, _ACCEPTED) from None
    return text


def show_dsn(dsn: str) -> str:
    """Return a data source name without its keys."""
    parsed = Dsn(dsn)
    return f"{parsed.scheme}://{parsed.netloc}{parsed.path}{parsed.project_id}"


def check_options(owner: object, options: dict[str, Any]) -> None:
    """Check options of ``sentry_sdk.init()``, and convert lists of integrations in place.

    :raises ValueError, TypeError, FileNotFoundError: naming the option that is wrong.
    """
    for name in options:
        if name == "dsn":
            raise ParameterError(
                owner, "client_options['dsn']", "...", "None (use the parameter sentry_dsn)"
            )
        if name not in DEFAULT_OPTIONS:
            accepted = "the name of an option of sentry_sdk.init()"
            raise ParameterError(owner, "a key of client_options", name, accepted)
    for name in ("ca_certs", "cert_file", "key_file"):
        path = options.get(name)
        if path is not None and not os.path.isfile(path):
            option = f"{type(owner).__qualname__}: client_options[{name!r}]"
            raise FileNotFoundError(f"{option} must be a file that exists, not {path!r}")
    for name in {"integrations", "disabled_integrations"} & options.keys():
        options[name] = _check_integrations(owner, name, options[name])


def _check_integrations(owner: object, name: str, value: Any) -> list[Integration]:
    try:
        integrations = list(value or ())
    except TypeError:
        integrations = [value]
    for one in integrations:
        if not isinstance(one, Integration):
            # A class is enough to disable an integration.
            is_class = isinstance(one, type) and issubclass(one, Integration)
            if not (is_class and name == "disabled_integrations"):
                what = f"client_options[{name!r}]"
                raise ParameterTypeError(owner, what, value, "a list of integrations of sentry_sdk")
    return integrations


def make_options(
    dsn: str, given: Mapping[str, Any], report_task: Callable[[Exception], object]
) -> dict[str, Any]:
    """Return all options for ``sentry_sdk.init()``.

    :param given: the user's options, which override the defaults.
    :param report_task: called with the error of a task.
    """
    integrations = {
        integration.identifier: integration
        for integration in (
            ArgvIntegration(),
            LoggingIntegration(),
            ModulesIntegration(),
            TaskErrors(report_task),
            *given.get("integrations", ()),
        )
    }
    for unwanted in given.get("disabled_integrations", ()):
        integrations.pop(unwanted.identifier, None)
    _disable_events(integrations.get(LoggingIntegration.identifier))
    chosen = [*integrations.values(), ServiceTags()]
    return {**_DEFAULTS, **given, "dsn": dsn, "integrations": chosen}


def _disable_events(integration: Integration | None) -> None:
    """Restrict the logging integration to breadcrumbs.

    The integration would make events in the log call, which takes long. A breadcrumb shows the text
    of the record alone, but the integration would format the traceback as well.
    """
    if isinstance(integration, LoggingIntegration):
        integration._handler = None  # noqa: SLF001 - event_level=None works at construction only
        breadcrumbs = integration._breadcrumb_handler  # noqa: SLF001 - takes no formatter otherwise
        if breadcrumbs is not None:
            breadcrumbs.setFormatter(_TextFormatter())


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        record.message = record.getMessage()
        return record.message
