"""Services that run aiohttp applications."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

try:
    from aiohttp import web
except ImportError as error:
    msg = "svcrun.service.aiohttp needs aiohttp: pip install 'svcrun[aiohttp]'"
    raise ImportError(msg) from error

from svcrun._net.tls_options import PathOrStr as PathOrStr, SSLOptions as SSLOptions
from svcrun._util.shared_stop import SharedStop
from svcrun._util.tasks import current_work
from svcrun._util.validation import number
from svcrun._web.aiohttp.access_log import AccessLogger
from svcrun._web.aiohttp.server import KEYWORDS, NUMBERS, Server
from svcrun._web.aiohttp.site import Runner, Site
from svcrun._web.application import check_application, check_import_string, load
from svcrun._web.graceful import limit_grace
from svcrun.errors import AlreadyRunning, ParameterError, ParameterTypeError, show
from svcrun.service._internals import overridable, part_of
from svcrun.service._parameters import parameter, several
from svcrun.service._proxied import Proxied
from svcrun.service._secure import SecureServer
from svcrun.service.base import Service as Service
from svcrun.sockets import bind_socket as bind_socket

if TYPE_CHECKING:
    import os
    import socket
    from collections.abc import Callable, Iterable, Mapping

    from svcrun._net.addresses import Option

__all__ = ("AIOHTTPSSLService", "AIOHTTPService", "AccessLogger", "Runner")

log = logging.getLogger(__name__)

RunnerKwargsType: TypeAlias = "Mapping[str, Any] | Iterable[tuple[str, Any]]"
"""The type of `runner_kwargs`."""

# Options for tasks of the entrypoint, and those that are parameters of the service.
_NOT_OF_THE_RUNNER = {
    "handle_signals": "left out (the entrypoint handles signals)",
    "shutdown_timeout": "left out (use the parameter shutdown_timeout)",
    "loop": "left out (it is the loop that the service runs in)",
}


class AIOHTTPService(Proxied, base=True):
    """Serve an aiohttp application.

    Pass it as `app`, or override :meth:`create_application`. The socket is bound before the
    application is created, and accepts connections after the application has started. A stop closes
    the listener first. Requests in flight have `shutdown_timeout` seconds, and web sockets are
    closed with code 1001 (going away). The rest is cancelled. Then the application cleans up.

    :param address: an IP address, a host name, or the path of a Unix socket; ``"localhost"`` by
        default. See :class:`svcrun._net.endpoint.Endpoint`.
    :param port: 0 to 65535. 0 selects a free port. Once started, :attr:`address` and :attr:`port`
        are the bound ones.
    :param sock: a bound socket, instead of `address` and `port`. The stop closes it. Or
        ``"fd:NAME"``, the socket that systemd has passed under that name.
    :param shutdown_timeout: seconds that requests in flight may take during the stop; 5 by default.
    :param handler_cancellation: whether to cancel a handler whose client disconnects; True by
        default.
    :param runner_kwargs: further options of aiohttp's server, such as ``keepalive_timeout``,
        ``access_log_format``, or ``access_log=None`` for no access log.
    :param app: an :class:`aiohttp.web.Application`, a factory (a function or coroutine function
        that returns one), or ``"package.module:name"`` of either. A service that may be started
        again needs a factory.
    :param path: the path of a Unix socket, instead of `address` and `port`. The stop removes its
        file.
    :param options: socket options as ``(level, option, value)``.
    :param reuse_port: whether several processes may listen on this port; False by default.
    :param backlog: the maximum number of connections that wait to be accepted; 1024 by default.
    :param max_connections: the maximum number of open connections; None, the default, for no limit.
        Further clients wait in the backlog.
    :param keepalive: seconds of silence after which TCP checks whether a client is still there;
        None, the default, for the checks of the system.
    :param proxy_protocol: the version of the PROXY protocol whose header each connection begins
        with, sent by a proxy such as HAProxy: ``"v1"``, ``"v2"`` or ``"any"``; None by default, for
        no header. See :ref:`proxy-protocol`.
    :param proxy_trusted: the addresses and networks of the proxies; loopback by default.
    :param proxy_timeout: seconds that the header may take; 5 by default.
    :param idle_grace: seconds that a connection without a request stays open in a shutdown by
        SIGTERM, for a request that its client may be sending; 0.5 by default.

    :raises ValueError, TypeError: if a parameter has a value that is not accepted.

    .. code-block:: python

        class REST(AIOHTTPService):
            async def create_application(self):
                app = aiohttp.web.Application()
                app.add_routes([aiohttp.web.get("/", handle)])
                return app


        with entrypoint(REST(address="::", port=8080)) as loop:
            loop.run_forever()
    """

    PROTO_NAME = "http"

    __async_required__: ClassVar[Any] = ("create_application", "make_runner", "create_site")

    address: str | os.PathLike[str] | None = parameter(default="localhost", kw_only=False)
    options: Iterable[Option] = parameter(default=())
    shutdown_timeout: float = parameter(
        default=5, check=number(low=0, unit="seconds"), kw_only=False
    )
    handler_cancellation: bool = parameter(default=True, kw_only=False)
    runner_kwargs: RunnerKwargsType | None = parameter(default=None, check=several, kw_only=False)
    app: web.Application | Callable[[], Any] | str | None = None
    backlog: int = parameter(default=1024, check=number(low=1, whole=True, unit="connections"))
    idle_grace: float = parameter(default=0.5, check=number(low=0, unit="seconds"))

    _svcrun_runner_class: ClassVar[type[Runner]] = Runner

    @property
    def __own(self) -> _Run:
        return part_of(self, _Run)

    @overridable
    def runner(self) -> web.BaseRunner | None:
        """The runner of the application, while the service runs."""
        return self.__own.runner

    @overridable
    def site(self) -> web.BaseSite | None:
        """The site that listens, while the service runs."""
        return self.__own.site

    async def create_application(self) -> web.Application:
        """Return the application. Each start calls this.

        :raises TypeError: if `app` is neither an application nor a factory of one.
        """
        if self.app is None:
            return web.Application()
        made = await load(self, self.app, _is_factory)
        if not isinstance(made, web.Application):
            accepted = "an aiohttp.web.Application or a factory"
            raise ParameterTypeError(type(self).__qualname__, "app", made, accepted)
        return made

    async def make_runner(self, application: web.Application) -> web.BaseRunner:
        """Return a runner of the application.

        A runner of another class than :class:`Runner` shuts down as that class does.
        """
        found: object = application
        if not isinstance(found, web.Application):
            name = "the result of create_application()"
            raise ParameterTypeError(self, name, found, "an aiohttp.web.Application")
        return self._svcrun_runner_class(
            application,
            owner=self,
            shutdown_timeout=self.shutdown_timeout,
            idle_grace=limit_grace(self.idle_grace, self.stop_timeout),
            **{
                "access_log_class": AccessLogger,
                "access_log_format": AccessLogger.LOG_FORMAT,
                "handler_cancellation": self.handler_cancellation,
                **self._svcrun_runner_kwargs(),
            },
        )

    async def create_site(self) -> web.BaseSite:
        """Return a site of the :attr:`runner` that listens on :attr:`socket`.

        :raises RuntimeError: if the service has no runner or no socket.
        """
        if self.__own.runner is None or self._svcrun_socket is None:
            raise RuntimeError(f"{self!r}: create_site() is called by start()")
        return Site(
            self.__own.runner,
            self._svcrun_socket,
            admission=self._svcrun_admission,
            backlog=self.backlog,
            tls=self._svcrun_secure(),
            is_shared=self._svcrun_endpoint.is_shared,
            proxy=self._svcrun_accept_proxies(),
        )

    async def start(self) -> None:
        """Bind the socket, start the application, and accept connections.

        :raises OSError: if the address can't be bound; it names address, port and service.
        """
        if self.__own.is_starting or self._svcrun_socket is not None:
            raise AlreadyRunning(self)
        self.__own.is_starting, self.__own.is_interrupted = True, False
        try:
            sock = await self._svcrun_bind()
            self.__check_not_stopped()
            application = await self.create_application()
            self.__check_not_stopped()
            self.__own.runner = await self.make_runner(application)
            await self.__own.runner.setup()
            self.__check_not_stopped()
            self.__own.site = await self.create_site()
            self.__check_not_stopped()
            if isinstance(self.__own.site, web.SockSite):  # other sites bind the address themselves
                self._svcrun_endpoint.listen(sock, self.backlog, self)
            await self.__own.site.start()
        except BaseException:
            await self.__roll_back()
            raise
        finally:
            self.__own.is_starting = False

    async def stop(self, exception: Any = None) -> None:
        """Close the listener, handle the requests in flight, then clean up the application.

        A :meth:`start` that is not complete fails, and is rolled back.
        """
        if self.__own.stop.is_running:
            if self.__own.runner is not None and isinstance(self.__own.runner.server, Server):
                # The stop in progress may wait for the handler that calls this: a deadlock.
                self.__own.runner.server.excuse(current_work.get())
            await self.__own.stop.in_progress()
            return
        if self.__own.is_starting:
            self.__own.is_interrupted = True
        if self.__own.is_starting or self._svcrun_socket is None:
            await super().stop(exception)
            return
        with self.__own.stop:
            try:
                self._svcrun_endpoint.remove_file()  # race: another server may create it
                try:
                    if self.__own.runner is not None:
                        await self.__own.runner.cleanup()
                finally:
                    await super().stop(exception)
            finally:
                self.__forget()

    def __check_not_stopped(self) -> None:
        if self.__own.is_interrupted:
            raise RuntimeError(f"{show(self)} was stopped before it had started")

    async def __roll_back(self) -> None:
        try:
            if self.__own.runner is not None:
                await self.__own.runner.cleanup()
        except Exception:
            # start() raises the error that made this necessary.
            log.exception("%s: the application failed to clean up after that", show(self))
        finally:
            self.__forget()

    def __forget(self) -> None:
        self.__own.runner = self.__own.site = None
        self._svcrun_unbind()

    def _svcrun_count_connections(self) -> int:
        server = None if self.__own.runner is None else self.__own.runner.server
        if server is None:
            return 0
        if isinstance(server, Server):
            return server.open_connections + self._svcrun_count_waiting()
        return len(getattr(server, "connections", ()))

    def _svcrun_secure(self) -> SecureServer | None:
        return None

    def _svcrun_runner_kwargs(self) -> dict[str, Any]:
        """Return `runner_kwargs` as a dictionary.

        :raises ValueError, TypeError: if an option or its value is not accepted.
        """
        owner = type(self).__qualname__
        try:
            found = dict(self.runner_kwargs or {})
        except (TypeError, ValueError):
            accepted = "a dictionary of keywords"
            raise ParameterTypeError(owner, "runner_kwargs", self.runner_kwargs, accepted) from None
        for name, value in found.items():
            where = f"runner_kwargs[{name!r}]"
            if name in _NOT_OF_THE_RUNNER:
                raise ParameterError(owner, where, value, _NOT_OF_THE_RUNNER[name])
            if name in NUMBERS and (isinstance(value, bool) or not isinstance(value, int | float)):
                raise ParameterTypeError(owner, where, value, "a number")
            if name == "access_log" and not isinstance(value, logging.Logger | None):
                raise ParameterTypeError(owner, where, value, "a logging.Logger or None")
            if name not in KEYWORDS:
                # aiohttp would ignore all options, and log a warning for each connection.
                accepted = f"one of {', '.join(sorted(KEYWORDS))}"
                raise ParameterError(owner, where, value, accepted)
        return found

    def _svcrun_check_together(self) -> None:
        super()._svcrun_check_together()
        check_import_string(self)
        check_application(self, AIOHTTPService, "create_application")
        self._svcrun_runner_kwargs()  # for its checks


class _Run:
    """The runner and the site of a service, and the progress of its start and stop."""

    def __init__(self, _: AIOHTTPService) -> None:
        self.runner: web.BaseRunner | None = None
        self.site: web.BaseSite | None = None
        self.stop = SharedStop()
        self.is_starting = False
        # Race: whether stop() was called during the start.
        self.is_interrupted = False


def _is_factory(app: Any) -> bool:
    return callable(app) and not isinstance(app, web.Application)


class AIOHTTPSSLService(SecureServer, AIOHTTPService, base=True):
    """Serve an aiohttp application by HTTPS.

    The parameters of :class:`AIOHTTPService`, and those below. A failed handshake is logged in one
    line, and does not affect other clients.

    :param cert: a PEM file with the certificate of the server, followed by intermediate ones.
    :param key: a PEM file with its private key, not encrypted.
    :param ca: a PEM file with the authorities of client certificates.
    :param verify: with `ca`, whether to verify the certificate that a client presents.
    :param require_client_cert: whether a client must present a certificate of `ca`.
    :param minimum_version: the lowest accepted version; TLS 1.3 by default.
    :param maximum_version: the highest accepted version; TLS 1.3 by default.
    :param ciphers: the ciphers for TLS 1.2 and before, by OpenSSL's names.
    :param ssl_handshake_timeout: seconds that a handshake may take; 10 by default.

    :raises FileNotFoundError: if a file does not exist.
    :raises ValueError, TypeError: if a parameter has a value that is not accepted.

    .. code-block:: python

        service = AIOHTTPSSLService("cert.pem", "key.pem", port=8443, app=make_application)
        with entrypoint(service) as loop:
            loop.run_forever()
    """

    PROTO_NAME = "https"

    _svcrun_order: ClassVar[tuple[str, ...]] = (
        *("cert", "key", "ca", "address", "port", "verify", "sock", "shutdown_timeout"),
        "require_client_cert",
    )

    if TYPE_CHECKING:  # this order is not that of the declarations

        def __init__(
            self,
            cert: str | os.PathLike[str],
            key: str | os.PathLike[str],
            ca: str | os.PathLike[str] | None = None,
            address: str | os.PathLike[str] | None = "localhost",
            port: int | None = None,
            verify: bool = True,
            sock: socket.socket | str | None = None,
            shutdown_timeout: float = 5,
            require_client_cert: bool = False,
            **kwargs: Any,
        ) -> None: ...

    async def start(self) -> None:
        """Read the certificates, then start as :class:`AIOHTTPService` does.

        :raises OSError: if a file can't be read, or the address can't be bound.
        :raises ValueError: if a file has other contents than its parameter requires.
        """
        if not self._svcrun_is_serving():
            self._svcrun_read_certificates()
        await super().start()

    def _svcrun_is_serving(self) -> bool:
        return part_of(self, _Run).site is not None

    def _svcrun_secure(self) -> SecureServer:
        return self
