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
from svcrun._util.validation import check_number
from svcrun.errors import ParameterError, ParameterTypeError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from svcrun.service.base import Service

__all__ = ("UvicornApplication", "changed", "check", "refuse_loop", "settle_place")

UvicornApplication: TypeAlias = Callable[..., Any]
"""An application for uvicorn: ASGI 3, ASGI 2 or WSGI."""

# Those which would do what the service, the entrypoint or a process manager does, with the values
# that ask for nothing, and what to do instead.
_FOREIGN: Final[Mapping[str, tuple[tuple[Any, ...], str]]] = {
    "env_file": ((None,), "nothing, and load the file before the service is made"),
    "reload": ((False,), "False, and run the program under a tool that restarts it, as watchfiles"),
    "reload_delay": ((0.25,), "nothing: a service does not reload its code"),
    "reload_dirs": ((None,), "nothing: a service does not reload its code"),
    "reload_excludes": ((None,), "nothing: a service does not reload its code"),
    "reload_includes": ((None,), "nothing: a service does not reload its code"),
    "workers": ((None, 1), "1, and start several processes that share a port by reuse_port=True"),
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

# The least value, whether it is a whole number, what is accepted, and whether None is.
_NUMBERS: Final = {
    "backlog": (1, True, "a number of connections from 1 on", False),
    "h11_max_incomplete_event_size": (1, True, "a number of bytes from 1 on, or None", True),
    "limit_concurrency": (1, True, "a number from 1 on, or None for no limit", True),
    "limit_max_requests": (1, True, "a number from 1 on, or None for no limit", True),
    "limit_max_requests_jitter": (0, True, "a number of requests from 0 on", False),
    "shutdown_timeout": (0, False, "a number of seconds, 0 for none", False),
    "timeout_graceful_shutdown": (0, False, "a number of seconds, or None", True),
    "timeout_keep_alive": (0, False, "a number of seconds", False),
    "timeout_notify": (0, False, "a number of seconds", False),
    "timeout_worker_healthcheck": (0, False, "a number of seconds", False),
    "ws_max_queue": (0, True, "a number of messages from 0 on", False),
    "ws_max_size": (1, True, "a number of bytes from 1 on", False),
    "ws_ping_interval": (0, False, "a number of seconds, or None for no pings", True),
    "ws_ping_timeout": (0, False, "a number of seconds, or None for no limit", True),
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
            accepted = f"nothing, or install a newer uvicorn than {uvicorn_version}"
            raise ParameterError(type(owner).__qualname__, name, value, accepted)
        found[name] = list(value) if isinstance(value, tuple | set | frozenset) else value
    return found


def check(owner: Any) -> None:
    """Refuse values that can't be used.

    :raises ValueError, TypeError: naming the class, the parameter, the value, and what is accepted.
    :raises FileNotFoundError: if a file is absent, naming the parameter and the path.
    """
    for name in _FOREIGN:
        _refuse_foreign(owner, name, getattr(owner, name))
    for name in _FLAGS:
        _check_type(owner, name, bool, "True or False")
    for name, (low, whole, accepted, optional) in _NUMBERS.items():
        value = getattr(owner, name)
        if not (optional and value is None):
            check_number(type(owner).__qualname__, name, value, accepted, low=low, whole=whole)
    _check_choice(owner, "lifespan", LIFESPAN)
    _check_choice(owner, "interface", INTERFACES)
    _check_protocol(owner, "http", HTTP_PROTOCOLS)
    _check_protocol(owner, "ws", WS_PROTOCOLS)
    _check_log_level(owner)
    _check_headers(owner)
    _check_type(owner, "root_path", str, "a path as str, '' for none")
    _check_type(owner, "forwarded_allow_ips", _ADDRESSES, "addresses as str or list")
    _check_type(owner, "ssl_ciphers", str | None, "names of ciphers as OpenSSL writes them")
    _check_type(owner, "ssl_version", int, "a protocol of the ssl module, as PROTOCOL_TLS_SERVER")
    for name in ("callback_notify", "ssl_context_factory"):
        value = getattr(owner, name)
        if value is not None and not callable(value):
            raise ParameterTypeError(type(owner).__qualname__, name, value, "a callable")
    _check_tls(owner)
    _check_descriptor(owner)


def refuse_loop(owner: Service, value: object) -> None:
    """Raise an error for the name of a loop, because the service runs in the entrypoint's loop.

    :param value: the value of ``loop``. A value that is not a string is set as the attribute of
        that name, as for any service.
    :raises ValueError: naming the class, the value, and what to do instead.
    """
    accepted = "nothing here, and entrypoint(loop_factory=...) for another loop"
    if isinstance(value, str) and value not in ("auto", "none"):
        raise ParameterError(type(owner).__qualname__, "loop", value, accepted)


def settle_place(owner: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Return the keywords with one endpoint, which several keywords may name."""
    places = {name: given.get(name, getattr(owner, name)) for name in _PLACES}
    for name, alias in (("address", "host"), ("path", "uds")):
        one, other = given.get(name), given.get(alias)
        if one is not None and other is not None and one != other:
            accepted = f"the same as {name}={one!r}, or one of the two"
            raise ParameterError(type(owner).__qualname__, alias, other, accepted)
    if places["path"] is not None:
        places.pop("uds")
    special = [name for name, value in places.items() if value is not None]
    if len(special) > 1:
        name = special[1]
        accepted = f"either {name} or {special[0]}, not both"
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
        accepted = f"a number, or one of {', '.join(map(repr, LOG_LEVELS))}"
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
            text = f"{name}: {option} needs {accepted}, there is none"
            raise FileNotFoundError(errno.ENOENT, text, os.fspath(path))
    if owner.ssl_keyfile is not None and owner.ssl_certfile is None:
        accepted = f"the certificate to ssl_keyfile={owner.ssl_keyfile!r}"
        raise ParameterError(name, "ssl_certfile", None, accepted)


def _check_descriptor(owner: Any) -> None:
    fd = owner.fd
    if fd is None:
        return
    accepted = "the number of an open descriptor of a listening stream socket"
    check_number(type(owner).__qualname__, "fd", fd, accepted, low=0, whole=True)
    try:
        # Whatever it is, it stays as it is.
        probe = socket.socket(fileno=fd)
        kind = probe.type
        probe.detach()
    except (OSError, OverflowError, ValueError):
        kind = None
    if kind != socket.SOCK_STREAM:
        raise ParameterError(type(owner).__qualname__, "fd", fd, accepted)
