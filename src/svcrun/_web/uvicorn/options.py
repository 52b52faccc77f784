"""Check the options of uvicorn, and pass them on."""

from __future__ import annotations

import errno
import inspect
import os
import socket
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from uvicorn import Config, __version__ as uvicorn_version
from uvicorn.config import HTTP_PROTOCOLS, INTERFACES, LIFESPAN, LOG_LEVELS, WS_PROTOCOLS

from svcrun._net.addresses import path_of
from svcrun._util.validation import number, optional
from svcrun.errors import ParameterError, ParameterTypeError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = (
    "UvicornApplication",
    "check_loop",
    "check_values",
    "endpoint_keywords",
    "load_config",
    "load_context",
    "non_default_options",
)

# Without a password, OpenSSL asks for one at the terminal, and blocks.
_NO_PASSWORD: Final = "no password was given"  # noqa: S105

UvicornApplication: TypeAlias = Callable[..., Any]
"""An application for uvicorn: ASGI 3, ASGI 2 or WSGI."""

# Options for tasks of the service, the entrypoint or a process manager: the values that have no
# effect, and the accepted value for the error message.
_UNSUPPORTED: Final[Mapping[str, tuple[tuple[Any, ...], str]]] = {
    "env_file": ((None,), "None (load the file before the service is created)"),
    "reload": ((False,), "False (restart the program with a tool such as watchfiles)"),
    "reload_delay": ((0.25,), "left out (a service does not reload its code)"),
    "reload_dirs": ((None,), "None (a service does not reload its code)"),
    "reload_excludes": ((None,), "None (a service does not reload its code)"),
    "reload_includes": ((None,), "None (a service does not reload its code)"),
    "workers": ((None, 1), "1 (several processes can share a port by reuse_port=True)"),
}

# Options that are not passed on unchanged: the service or the entrypoint handles them.
_HANDLED: Final = frozenset(
    {
        "access_log",
        "app",
        "backlog",
        "factory",
        "fd",
        "host",
        "idle_grace",
        "log_config",
        "log_level",
        "port",
        "shutdown_timeout",
        "uds",
        "use_colors",
        *_UNSUPPORTED,
    }
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
    "idle_grace": _SECONDS,
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

_ENDPOINTS: Final = ("sock", "fd", "path", "uds")

_KNOWN: Final = inspect.signature(Config).parameters


def non_default_options(owner: object, base: type) -> dict[str, Any]:
    """Return the options to pass on to uvicorn: those that differ from its defaults.

    :param base: the class that declares the options.
    :raises ValueError: if the installed version of uvicorn does not have the option.
    """
    found = {}
    for name in base.__annotations__:
        if name in _HANDLED or name.startswith("_"):
            continue
        value = getattr(owner, name)
        if value == vars(base)[name]:
            continue
        if name not in _KNOWN:
            accepted = f"left out (uvicorn {uvicorn_version} does not support it)"
            raise ParameterError(type(owner).__qualname__, name, value, accepted)
        found[name] = list(value) if isinstance(value, tuple | set | frozenset) else value
    return found


def check_values(owner: Any) -> None:
    """Check the values of all options.

    :raises ValueError, TypeError: if a value is not accepted.
    :raises FileNotFoundError: if a file of TLS does not exist.
    """
    for name in _UNSUPPORTED:
        _check_unsupported(owner, name, getattr(owner, name))
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


def check_loop(owner: object, value: object) -> None:
    """Check the option ``loop``: a service runs in the loop of the entrypoint.

    :param value: the name of a loop. Another value is set as the attribute ``loop``, as for any
        service.
    :raises ValueError: if it is the name of a certain loop.
    """
    accepted = "left out (choose the loop by entrypoint(loop_factory=...))"
    if isinstance(value, str) and value not in ("auto", "none"):
        raise ParameterError(type(owner).__qualname__, "loop", value, accepted)


def endpoint_keywords(owner: Any, base: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Return the keywords with those of one endpoint: ``host`` and ``uds`` are aliases.

    A socket that is only named may be absent. So it may have another endpoint beside it.

    :param base: the class that declares the options.
    :raises ValueError: if the keywords name several endpoints.
    """
    endpoints = {name: given.get(name, getattr(owner, name)) for name in _ENDPOINTS}
    for name, alias in (("address", "host"), ("path", "uds")):
        one, other = given.get(name), given.get(alias)
        if one is not None and other is not None and one != other:
            accepted = f"left out beside {name}={one!r}, or equal to it"
            raise ParameterError(type(owner).__qualname__, alias, other, accepted)
    if endpoints["path"] is not None:
        endpoints.pop("uds")
    is_named = isinstance(endpoints["sock"], str)
    if is_named and endpoints["fd"] is None:
        endpoints.pop("sock")
    special = [name for name, value in endpoints.items() if value is not None]
    if len(special) > 1:
        name = special[1]
        accepted = f"None beside {special[0]}={endpoints[special[0]]!r}"
        raise ParameterError(type(owner).__qualname__, name, endpoints[name], accepted)
    address = given.get("address")
    if address is None:
        address = given.get("host")
    # The defaults do not apply to other kinds of endpoints. Beside a socket that is only named, an
    # address, a port, or one that a subclass declares stands for both.
    names = ("address", "host", "port")
    is_chosen = "port" in given or any(getattr(owner, n) != getattr(base, n) for n in names)
    if address is None and not special and (is_chosen or not is_named):
        address = owner.host if owner.address is None else owner.address
    port = {"port": None} if address is None or path_of(address) is not None else {}
    return {**port, **given, "address": address}


def _check_unsupported(owner: object, name: str, value: object) -> None:
    if name == "reload" and not isinstance(value, bool):
        return  # a subclass may have a method of this name
    harmless, instead = _UNSUPPORTED[name]
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
        # Close nothing: the descriptor belongs to its owner until start().
        probe = socket.socket(fileno=fd)
        kind = probe.type
        probe.detach()
    except (OSError, OverflowError, ValueError):
        kind = None
    if kind != socket.SOCK_STREAM:
        raise ParameterError(type(owner).__qualname__, "fd", fd, accepted)


def load_config(owner: Any, base: type, application: Any) -> Config:
    """Return uvicorn's configuration for a service, with the certificates that it names.

    :param base: the class of svcrun that the service derives from.
    :raises TypeError: if the application can't be called.
    :raises ValueError: if a file does not contain a valid certificate or key.
    :raises OSError: if a file can't be read.
    """
    if not callable(application):
        name = "app" if owner.app is not None else "the result of create_application()"
        raise ParameterTypeError(owner, name, application, "an ASGI application or a factory")
    options = _options_with_password(owner, base)
    if owner.port is None:
        options["uds"] = str(owner.address)
    else:
        options.update(host=str(owner.address), port=owner.port)
    config = Config(
        # uvicorn would call an application to check whether it is a factory.
        lambda: application,
        factory=True,
        backlog=owner.backlog,
        log_config=owner.log_config,
        use_colors=owner.use_colors,
        workers=1,
        **options,
    )
    # As a keyword, False would disable the access log of all servers in the process.
    config.access_log = owner.access_log
    _load(owner, config)
    return config


def load_context(owner: Any, base: type) -> ssl.SSLContext:
    """Return a new SSL context for a service, with the certificates that it names.

    :param base: the class of svcrun that the service derives from.
    :raises ValueError: if a file does not contain a valid certificate or key.
    :raises OSError: if a file can't be read.
    """
    options = _options_with_password(owner, base)
    options = {name: value for name, value in options.items() if name.startswith("ssl_")}
    # uvicorn creates the context together with the rest, which has no effect here.
    config = Config(
        lambda: _no_application,
        factory=True,
        interface="asgi3",
        lifespan="off",
        log_config=None,
        **options,
    )
    context: ssl.SSLContext = _load(owner, config)
    return context


async def _no_application(*_: object) -> None:
    """Handle nothing."""


def _options_with_password(owner: Any, base: type) -> dict[str, Any]:
    options = non_default_options(owner, base)
    if owner.ssl_certfile is not None:
        options.setdefault("ssl_keyfile_password", _NO_PASSWORD)
    return options


def _load(owner: Any, config: Config) -> Any:
    """Load the certificates, and the rest; return the SSL context, None without TLS."""
    try:
        config.load()
    except ssl.SSLError as error:
        accepted = f"PEM files that OpenSSL can use ({error.reason or error})"
        name = type(owner).__qualname__
        raise ParameterError(name, "ssl_certfile", owner.ssl_certfile, accepted) from error
    return config.ssl
