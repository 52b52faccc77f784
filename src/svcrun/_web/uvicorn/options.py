"""The options of uvicorn: which there are, what they accept, and which do not fit a service."""

from __future__ import annotations

import errno
import inspect
import os
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from uvicorn import Config, __version__ as uvicorn_version
from uvicorn.config import HTTP_PROTOCOLS, INTERFACES, LIFESPAN, LOG_LEVELS, WS_PROTOCOLS

from svcrun._net.addresses import path_of
from svcrun._util.validation import number, optional
from svcrun.errors import ParameterError, ParameterTypeError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from svcrun.service.base import Service

__all__ = ("UvicornApplication", "changed", "check_values", "refuse_loop", "settle_place")

UvicornApplication: TypeAlias = Callable[..., Any]
"""An application for uvicorn: ASGI 3, ASGI 2 or WSGI."""

# Those which would do what the service, the entrypoint or a process manager does, with the values
# that ask for nothing, and what to do instead.
_FOREIGN: Final[Mapping[str, tuple[tuple[Any, ...], str]]] = {
    "env_file": ((None,), "None (load the file before the service is created)"),
    "reload": ((False,), "False (restart the program with a tool such as watchfiles)"),
    "reload_delay": ((0.25,), "left out (a service does not reload its code)"),
    "reload_dirs": ((None,), "None (a service does not reload its code)"),
    "reload_excludes": ((None,), "None (a service does not reload its code)"),
    "reload_includes": ((None,), "None (a service does not reload its code)"),
    "workers": ((None, 1), "1 (several processes can share a port by reuse_port=True)"),
}

# What uvicorn takes for them as it is.
_PASSED: Final = (
    "callback_notify",
    "date_header",
    "forwarded_allow_ips",
    "h11_max_incomplete_event_size",
    "headers",
    "http",
    "http2",
    "interface",
    "lifespan",
    "limit_concurrency",
    "limit_max_requests",
    "limit_max_requests_jitter",
    "proxy_headers",
    "reset_contextvars",
    "root_path",
    "server_header",
    "ssl_ca_certs",
    "ssl_certfile",
    "ssl_cert_reqs",
    "ssl_ciphers",
    "ssl_context_factory",
    "ssl_keyfile",
    "ssl_keyfile_password",
    "ssl_version",
    "timeout_graceful_shutdown",
    "timeout_keep_alive",
    "timeout_notify",
    "timeout_worker_healthcheck",
    "ws",
    "ws_max_queue",
    "ws_max_size",
    "ws_per_message_deflate",
    "ws_ping_interval",
    "ws_ping_timeout",
)

_FLAGS: Final = (
    "access_log",
    "date_header",
    "factory",
    "http2",
    "proxy_headers",
    "reset_contextvars",
    "server_header",
    "ws_per_message_deflate",
)

_SECONDS: Final = number(low=0, unit="seconds")
_AT_LEAST_ONE: Final = number(low=1, whole=True)

_NUMBERS: Final = {
    "backlog": number(low=1, whole=True, unit="connections"),
    "h11_max_incomplete_event_size": optional(number(low=1, whole=True, unit="bytes")),
    "limit_concurrency": optional(_AT_LEAST_ONE, "no limit"),
    "limit_max_requests": optional(_AT_LEAST_ONE, "no limit"),
    "limit_max_requests_jitter": number(low=0, whole=True, unit="requests"),
    "shutdown_timeout": _SECONDS,
    "timeout_graceful_shutdown": optional(_SECONDS),
    "timeout_keep_alive": _SECONDS,
    "timeout_notify": _SECONDS,
    "timeout_worker_healthcheck": _SECONDS,
    "ws_max_queue": number(low=0, whole=True, unit="messages"),
    "ws_max_size": number(low=1, whole=True, unit="bytes"),
    "ws_ping_interval": optional(_SECONDS, "no pings"),
    "ws_ping_timeout": optional(_SECONDS, "no limit"),
}

_FILES: Final = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")

_ADDRESSES: Final = str | list | tuple | set | frozenset | None

_PLACES: Final = ("sock", "fd", "path", "uds")

_KNOWN: Final = inspect.signature(Config).parameters


def changed(owner: Service, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return those options that are not as uvicorn has them by default.

    :param defaults: the defaults of the service.
    :raises ValueError: if one is set that the installed uvicorn does not have.
    """
    found = {}
    for name in _PASSED:
        value = getattr(owner, name)
        if value == defaults[name]:
            continue
        if name not in _KNOWN:
            accepted = f"left out (uvicorn {uvicorn_version} does not support it)"
            raise ParameterError(type(owner).__qualname__, name, value, accepted)
        found[name] = list(value) if isinstance(value, tuple | set | frozenset) else value
    return found


def check_values(owner: Any) -> None:
    """Refuse values that can't be used.

    :raises ValueError, TypeError: naming the class, the parameter, the value, and what is accepted.
    :raises FileNotFoundError: if a file is absent, naming the parameter and the path.
    """
    for name in _FOREIGN:
        _refuse_foreign(owner, name, getattr(owner, name))
    for name in _FLAGS:
        _check_type(owner, name, bool, "True or False")
    for name, check in _NUMBERS.items():
        check(owner, name, getattr(owner, name))
    _check_choice(owner, "lifespan", LIFESPAN)
    _check_choice(owner, "interface", INTERFACES)
    _check_protocol(owner, "http", HTTP_PROTOCOLS)
    _check_protocol(owner, "ws", WS_PROTOCOLS)
    _check_log_level(owner)
    _check_headers(owner)
    _check_type(owner, "root_path", str, "a str")
    _check_type(owner, "forwarded_allow_ips", _ADDRESSES, "a str or a list of addresses")
    _check_type(owner, "ssl_ciphers", str | None, "a str of ciphers in OpenSSL's form, or None")
    _check_type(owner, "ssl_version", int, "a protocol such as ssl.PROTOCOL_TLS_SERVER")
    for name in ("callback_notify", "ssl_context_factory"):
        value = getattr(owner, name)
        if value is not None and not callable(value):
            raise ParameterTypeError(type(owner).__qualname__, name, value, "a function")
    _check_tls(owner)
    _check_descriptor(owner)


def refuse_loop(owner: Service, value: object) -> None:
    """Raise an error for the name of a loop, because the service runs in the entrypoint's loop.

    :param value: the value of ``loop``. A value that is not a string is set as the attribute of
        that name, as for any service.
    :raises ValueError: naming the class, the value, and what to do instead.
    """
    accepted = "left out (choose the loop by entrypoint(loop_factory=...))"
    if isinstance(value, str) and value not in ("auto", "none"):
        raise ParameterError(type(owner).__qualname__, "loop", value, accepted)


def settle_place(owner: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Return the keywords with one endpoint, which several keywords may name."""
    places = {name: given.get(name, getattr(owner, name)) for name in _PLACES}
    for name, alias in (("address", "host"), ("path", "uds")):
        one, other = given.get(name), given.get(alias)
        if one is not None and other is not None and one != other:
            accepted = f"left out beside {name}={one!r}, or equal to it"
            raise ParameterError(type(owner).__qualname__, alias, other, accepted)
    if places["path"] is not None:
        places.pop("uds")
    special = [name for name, value in places.items() if value is not None]
    if len(special) > 1:
        name = special[1]
        accepted = f"None beside {special[0]}={places[special[0]]!r}"
        raise ParameterError(type(owner).__qualname__, name, places[name], accepted)
    address = given.get("address")
    if address is None:
        address = given.get("host")
    if address is None and not special:
        address = owner.host if owner.address is None else owner.address
    # The default port does not apply to other kinds of endpoints.
    port = {"port": None} if special or path_of(address) is not None else {}
    return {**port, **given, "address": address}


def _refuse_foreign(owner: object, name: str, value: object) -> None:
    if name == "reload" and not isinstance(value, bool):
        return  # a class may use the name otherwise, as for a method
    harmless, instead = _FOREIGN[name]
    if not any(value is one or value == one for one in harmless):
        raise ParameterError(type(owner).__qualname__, name, value, instead)


def _check_type(owner: object, name: str, kinds: Any, accepted: str) -> None:
    value = getattr(owner, name)
    if not isinstance(value, kinds):
        raise ParameterTypeError(type(owner).__qualname__, name, value, accepted)


def _check_choice(owner: object, name: str, choices: Any) -> None:
    value = getattr(owner, name)
    if not isinstance(value, str) or value not in choices:
        accepted = f"one of {', '.join(map(repr, choices))}"
        raise ParameterError(type(owner).__qualname__, name, value, accepted)


def _check_protocol(owner: object, name: str, choices: Any) -> None:
    value = getattr(owner, name)
    if not isinstance(value, type) and not (isinstance(value, str) and ":" in value):
        _check_choice(owner, name, choices)


def _check_log_level(owner: Any) -> None:
    level = owner.log_level
    if level is None or (isinstance(level, int) and not isinstance(level, bool) and level >= 0):
        return
    if not isinstance(level, str) or level.lower() not in LOG_LEVELS:
        accepted = f"a number or one of {', '.join(map(repr, LOG_LEVELS))}"
        raise ParameterError(type(owner).__qualname__, "log_level", level, accepted)


def _check_headers(owner: Any) -> None:
    accepted = "pairs (name, value) of str"
    try:
        pairs = [(name, value) for name, value in owner.headers or ()]
    except (TypeError, ValueError):
        pairs = [(None, None)]
    if not all(isinstance(part, str) for pair in pairs for part in pair):
        raise ParameterTypeError(type(owner).__qualname__, "headers", owner.headers, accepted)


def _check_tls(owner: Any) -> None:
    name = type(owner).__qualname__
    for option in _FILES:
        path = getattr(owner, option)
        if path is None:
            continue
        accepted = "the path of a PEM file"
        if not isinstance(path, str | os.PathLike):
            raise ParameterTypeError(name, option, path, accepted)
        if not os.path.isfile(path):
            text = f"{name}: {option} must be {accepted} that exists"
            raise FileNotFoundError(errno.ENOENT, text, os.fspath(path))
    if owner.ssl_keyfile is not None and owner.ssl_certfile is None:
        accepted = f"the certificate of ssl_keyfile={owner.ssl_keyfile!r}"
        raise ParameterError(name, "ssl_certfile", None, accepted)


def _check_descriptor(owner: Any) -> None:
    fd = owner.fd
    if fd is None:
        return
    accepted = "the descriptor of a stream socket"
    number(low=0, whole=True)(owner, "fd", fd)
    try:
        # Whatever it is, it stays as it is.
        probe = socket.socket(fileno=fd)
        kind = probe.type
        probe.detach()
    except (OSError, OverflowError, ValueError):
        kind = None
    if kind != socket.SOCK_STREAM:
        raise ParameterError(type(owner).__qualname__, "fd", fd, accepted)
