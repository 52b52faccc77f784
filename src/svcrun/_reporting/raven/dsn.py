"""Parse a data source name (DSN), which is the address of a Sentry project with its keys."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

from raven.conf.remote import RemoteConfig

from svcrun.errors import ParameterError

if TYPE_CHECKING:
    from collections.abc import Callable
    from urllib.parse import SplitResult

__all__ = ("DSN", "parse_dsn")

_ACCEPTED = "https://PUBLIC_KEY@HOST/PROJECT as shown in the settings of the Sentry project"

_SWITCHES = {"0": False, "false": False, "no": False, "1": True, "true": True, "yes": True}

TIMEOUT = 5.0  # seconds, as in raven


@dataclass(frozen=True, repr=False)
class DSN:
    """A parsed data source name."""

    scheme: str
    host: str
    """The host, with brackets if it is an IPv6 address, and the port if one is given."""
    path: str
    """The path between the host and the project."""
    project: str
    public_key: str
    secret_key: str | None
    timeout: float
    """The time limit of an attempt to send an event, in seconds."""
    verify: bool
    """Whether to check the certificate of the server."""
    ca: str | None
    """The path of a file of certificate authorities that replace those of the system."""

    def __str__(self) -> str:
        return f"{self.scheme}://{self.host}{self.path}/{self.project}"

    __repr__ = __str__  # keeps the keys out of tracebacks as well

    def remote(self, transport: Callable[..., Any]) -> RemoteConfig:
        """Return the configuration of raven for this address.

        raven's own parser drops the brackets of IPv6 addresses, and its errors show the keys.
        """
        return RemoteConfig(
            base_url=f"{self.scheme}://{self.host}{self.path}",
            project=self.project,
            public_key=self.public_key,
            secret_key=self.secret_key,
            transport=transport,
        )


def parse_dsn(owner: object, value: object) -> DSN:
    """Parse a data source name.

    :raises ValueError: if it is malformed; the error shows neither of its keys.
    """
    text = str(value).strip()
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError:  # its text may show the keys
        raise ParameterError(owner, "sentry_dsn", "...", _ACCEPTED) from None
    # raven reads the name of a transport before the "+".
    scheme = url.scheme.rpartition("+")[2]
    path, _, project = url.path.rpartition("/")
    if scheme not in ("http", "https") or not (url.hostname and url.username and project):
        raise ParameterError(owner, "sentry_dsn", _hide_keys(url), _ACCEPTED)
    host = f"[{url.hostname}]" if ":" in url.hostname else url.hostname
    return DSN(
        scheme=scheme,
        host=host if port is None else f"{host}:{port}",
        path=path,
        project=project,
        public_key=url.username,
        secret_key=url.password,
        **_read_options(owner, url.query),
    )


def _read_options(owner: object, query: str) -> dict[str, Any]:
    given = dict(parse_qsl(query))
    options: dict[str, Any] = {"timeout": TIMEOUT, "verify": True, "ca": None}
    for name, text in given.items():
        option = f"sentry_dsn with ?{name}"
        if name == "timeout":
            options["timeout"] = _read_seconds(owner, option, text)
        elif name == "verify_ssl":
            if text.lower() not in _SWITCHES:
                raise ParameterError(owner, option, text, "1 or 0")
            options["verify"] = _SWITCHES[text.lower()]
        elif name == "ca_certs":
            if not os.path.isfile(text):
                raise FileNotFoundError(
                    f"{type(owner).__qualname__}: {option} must be a file that exists, not {text!r}"
                )
            options["ca"] = text
        else:
            accepted = "timeout, verify_ssl or ca_certs"
            raise ParameterError(owner, "an option of sentry_dsn", name, accepted)
    return options


def _read_seconds(owner: object, option: str, text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ParameterError(owner, option, text, "a number of seconds greater than 0")
    return seconds


def _hide_keys(url: SplitResult) -> str:
    host = url.netloc.rpartition("@")[2]
    keys = "..." if url.username else ""
    return f"{url.scheme}://{keys}@{host}{url.path}" if url.scheme and host else "..."
