"""A service that runs an ASGI application on uvicorn."""

from __future__ import annotations

import logging
import socket
import ssl
from typing import TYPE_CHECKING, Any, ClassVar, Literal

try:
    import uvicorn  # noqa: TC002 - to find out whether it is there
except ImportError as error:
    msg = "svcrun.service.uvicorn needs uvicorn: pip install 'svcrun[uvicorn]'"
    raise ImportError(msg) from error

from svcrun._net.endpoint import Endpoint
from svcrun._util.shared_stop import SharedStop
from svcrun._web.application import check_application, check_import_string, is_factory, load
from svcrun._web.graceful import limit_grace
from svcrun._web.uvicorn.log_levels import LogLevels
from svcrun._web.uvicorn.options import (
    UvicornApplication,
    check_loop,
    check_values,
    endpoint_keywords,
    load_config,
    load_context,
    non_default_options,
)
from svcrun._web.uvicorn.server import STOPPED_EARLY, Server
from svcrun.errors import (
    AlreadyRunning,
    MissingParameters,
    NotRunning,
    ServerEnded,
    show,
)
from svcrun.service._internals import internals_of, overridable, part_of
from svcrun.service._parameters import parameter, several
from svcrun.service._proxied import Proxied

if TYPE_CHECKING:
    import asyncio
    import os
    from collections.abc import Awaitable, Callable, Iterable

    from uvicorn.config import HTTPProtocolType, InterfaceType, LifespanType, WSProtocolType

    Path = str | os.PathLike[str]
    ContextFactory = Callable[[uvicorn.Config, Callable[[], ssl.SSLContext]], ssl.SSLContext]

__all__ = ("UvicornApplication", "UvicornService")

log = logging.getLogger(__name__)


class UvicornService(Proxied, base=True):
    """Serve an ASGI application by uvicorn.

    Pass it as `app`, or override :meth:`create_application`. The socket is bound before the
    application is created, and accepts connections after the application has started. A stop closes
    the listener first. Requests in flight have `shutdown_timeout` seconds, and web sockets are
    closed with code 1012 (service restart). The rest is cancelled. Then the application shuts down,
    for which it has as long again, and at least a second.

    The entrypoint handles signals, and its handlers write the records of uvicorn's loggers.

    :param app: an ASGI application, a factory (a function or coroutine function without
        parameters that returns one), or ``"package.module:name"`` of either. A service that may be
        started again needs a factory.
    :param address: an IP address, a host name, or the path of a Unix socket. See
        :class:`svcrun._net.endpoint.Endpoint`.
    :param host: an alias of `address`; ``"127.0.0.1"`` by default.
    :param port: 0 to 65535; 8080 by default. 0 selects a free port. Once started, :attr:`address`
        and :attr:`port` are the bound ones.
    :param path: the path of a Unix socket, instead of `address` and `port`. The stop removes its
        file.
    :param uds: an alias of `path`.
    :param sock: a bound socket, instead of `address` and `port`. The stop closes it. Or
        ``"fd:NAME"``, the socket that systemd has passed under that name.
    :param fd: an inherited descriptor of a bound stream socket, instead of `address` and `port`.
        The stop closes it.
    :param options: socket options as ``(level, option, value)``.
    :param reuse_port: whether several processes may listen on this port; False by default.
    :param max_connections: the maximum number of open connections; None, the default, for no limit.
        Further clients wait in the backlog, while `limit_concurrency` answers them with status 503.
    :param keepalive: seconds of silence after which TCP checks whether a client is still there;
        None, the default, for the checks of the system.
    :param shutdown_timeout: seconds that requests in flight may take during the stop, and the
        application after them; 5 by default.
    :param timeout_graceful_shutdown: seconds that requests in flight may take, if that differs.
    :param idle_grace: seconds that an idle connection stays open in a shutdown by SIGTERM, for a
        request that its client may be sending; 0.5 by default.
    :param factory: whether `app` is a factory, whatever its parameters are.
    :param log_level: the level of uvicorn's loggers while the service runs, as a number or a name;
        that of the root logger by default.
    :param access_log: whether to log each request; True by default.
    :param proxy_protocol: ``"v1"``, ``"v2"``, ``"any"`` or None; see :ref:`proxy-protocol`.
    :param proxy_trusted: the addresses and networks of the proxies; loopback by default.
    :param proxy_timeout: seconds that the header of the proxy may take; 5 by default.

    Each other option of :class:`uvicorn.Config` is a parameter as well, with uvicorn's default. The
    options ``reload``, ``workers`` and ``env_file`` are not supported, and ``loop`` is that of the
    entrypoint.

    :raises ValueError, TypeError: if a parameter has a value that is not accepted.
    :raises FileNotFoundError: if a file of TLS does not exist.
    :raises AttributeError: if there is neither `app` nor a :meth:`create_application`.

    .. code-block:: python

        class REST(UvicornService):
            async def create_application(self):
                app = fastapi.FastAPI()
                app.include_router(router)
                return app


        with entrypoint(REST(address="::", port=8080)) as loop:
            loop.run_forever()
    """

    PROTO_NAME = "http"

    __async_required__: ClassVar[Any] = ("create_application",)

    app: Any = None
    shutdown_timeout: float = 5
    idle_grace: float = 0.5

    # The options of uvicorn.Config, in its order, except `loop`.
    host: Path = "127.0.0.1"
    port: int | None = 8080
    uds: Path | None = None
    fd: int | None = None
    http: type[asyncio.Protocol] | HTTPProtocolType | str = "auto"
    http2: bool = False
    ws: type[asyncio.Protocol] | WSProtocolType | str = "auto"
    ws_max_size: int = 16 * 1024 * 1024
    ws_max_queue: int = 32
    ws_ping_interval: float | None = 20.0
    ws_ping_timeout: float | None = 20.0
    ws_per_message_deflate: bool = True
    lifespan: LifespanType = "auto"
    env_file: None = None
    log_config: Any = None
    log_level: str | int | None = None
    access_log: bool = True
    use_colors: bool | None = False
    interface: InterfaceType = "auto"
    reload: Any = False
    reload_dirs: None = None
    reload_delay: float = 0.25
    reload_includes: None = None
    reload_excludes: None = None
    workers: Literal[1] | None = None
    proxy_headers: bool = True
    server_header: bool = True
    date_header: bool = True
    forwarded_allow_ips: Iterable[str] | None = parameter(default=None, check=several)
    root_path: str = ""
    limit_concurrency: int | None = None
    limit_max_requests: int | None = None
    limit_max_requests_jitter: int = 0
    backlog: int = 2048
    timeout_keep_alive: float = 5
    timeout_notify: float = 30
    timeout_graceful_shutdown: float | None = None
    timeout_worker_healthcheck: float = 5
    callback_notify: Callable[..., Awaitable[None]] | None = None
    ssl_keyfile: Path | None = None
    ssl_certfile: Path | None = None
    ssl_keyfile_password: str | None = None
    ssl_version: int = ssl.PROTOCOL_TLS_SERVER
    ssl_cert_reqs: int = ssl.CERT_NONE
    ssl_ca_certs: Path | None = None
    ssl_ciphers: str | None = None
    ssl_context_factory: ContextFactory | None = None
    headers: Iterable[tuple[str, str]] | None = parameter(default=None, check=several)
    factory: bool = False
    h11_max_incomplete_event_size: int | None = None
    reset_contextvars: bool = False

    def _svcrun_arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        kwargs = super()._svcrun_arguments(args, kwargs)
        for loop in (kwargs.get("loop"), type(self).loop):
            check_loop(self, loop)
        if isinstance(kwargs.get("loop"), str):
            del kwargs["loop"]
        return endpoint_keywords(self, UvicornService, kwargs)

    def _svcrun_check_together(self) -> None:
        cls = type(self)
        check_import_string(self)
        check_values(self)
        non_default_options(self, UvicornService)  # for its checks
        super()._svcrun_check_together()  # after the check of `fd`, which it uses
        check_application(self, UvicornService, "create_application")
        if self.app is None and cls.create_application is UvicornService.create_application:
            raise MissingParameters(cls.__qualname__, ("app",))

    @property
    def __own(self) -> _Run:
        return part_of(self, _Run)

    @overridable
    def server(self) -> Server | None:
        """The uvicorn server, while the service runs."""
        return self.__own.server

    async def create_application(self) -> Any:
        """Return the application. Each start calls this."""
        return await load(self, self.app, lambda app: self.factory or is_factory(app, 3))

    async def start(self) -> None:
        """Bind the socket, start the application, accept connections, and run until the stop.

        :raises OSError: if the address can't be bound; it names address, port and service.
        :raises ApplicationStartFailed: if the start of the application fails.
        :raises ServerEnded: if uvicorn ends without a :meth:`stop`.
        """
        if self.__own.is_starting or self._svcrun_socket is not None:
            raise AlreadyRunning(self)
        started = internals_of(self).start_event
        started.clear()  # it may be set if the caller is not an entrypoint
        self.__own.is_starting, self.__own.is_stop_requested = True, False
        try:
            server = await self.__start_server()
        finally:
            self.__own.is_starting = False
        started.set()
        try:
            await server.main_loop()
        except Exception:
            await self.__undo()
            raise
        if self.__own.is_stop_requested:
            if self.__own.stop.is_running:
                await self.__own.stop.in_progress()
            return
        limit = self.limit_max_requests
        reason = "should_exit was set" if limit is None else f"limit_max_requests={limit}"
        await self.__undo()
        raise ServerEnded(self, reason)

    async def stop(self, exception: Any = None) -> None:
        """Close the listener, handle the requests in flight, then shut down the application.

        A :meth:`start` that is not complete fails, and is rolled back.

        :raises ApplicationStopFailed: if the shutdown of the application fails.
        """
        self.__own.is_stop_requested = True
        try:
            await self.__close()
        finally:
            await super().stop(exception)

    def reload_certificates(self) -> None:
        """Read the certificate and the key again, and use them from the next handshake on.

        Open connections are not affected. If a file is invalid, nothing changes. SIGHUP calls this.

        :raises RuntimeError: if the service is not running, or has no certificate.
        :raises OSError: if a file can't be read.
        :raises ValueError: if a file does not contain a valid certificate or key.
        """
        server = self.__own.server
        if server is None or self.__is_plain():
            raise NotRunning(self, "reload_certificates()")
        server.context = load_context(self, UvicornService)
        log.info("%s: certificates read again", show(self))

    def _svcrun_reload(self) -> Callable[[], Awaitable[None]] | None:
        return None if self.__is_plain() else self.__reload

    async def __reload(self) -> None:
        self.reload_certificates()

    async def __start_server(self) -> Server:
        sock = await self.__bind()
        try:
            self.__check_not_stopped()
            self.__own.levels.set(self.log_level)
            application = await self.create_application()
            self.__check_not_stopped()
            server = self.__own.server = self.__make_server(application)
            await server.startup([sock])
        except BaseException:
            if self._svcrun_socket is sock:
                await self.__undo()
            raise
        return server

    def __check_not_stopped(self) -> None:
        if self.__own.is_stop_requested:
            raise ServerEnded(self, STOPPED_EARLY)

    async def __bind(self) -> socket.socket:
        if self.fd is None or self.__own.owns_descriptor:
            return await self._svcrun_bind()
        inherited = self._svcrun_endpoint.sock = socket.socket(fileno=self.fd)
        try:
            sock = await self._svcrun_bind()
        except BaseException:
            inherited.detach()  # leave the descriptor open: another start may succeed
            raise
        self.__own.owns_descriptor = True
        return sock

    def __make_server(self, application: Any) -> Server:
        config = load_config(self, UvicornService, application)
        limit = "shutdown_timeout"
        if self.timeout_graceful_shutdown is not None:
            limit = "timeout_graceful_shutdown"
        return Server(
            config,
            self,
            self._svcrun_endpoint,
            self._svcrun_admission,
            request_timeout=getattr(self, limit),
            request_limit=limit,
            lifespan_timeout=self.shutdown_timeout,
            proxy=self._svcrun_accept_proxies(),
            idle_grace=limit_grace(self.idle_grace, self.stop_timeout),
        )

    async def __close(self) -> None:
        """Shut down the server and close the socket, once for all concurrent callers."""
        # The socket is closed in the same iteration of the loop in which the stop ends.
        if self._svcrun_socket is None or await self.__own.stop.in_progress():
            return
        with self.__own.stop:
            try:
                self._svcrun_endpoint.remove_file()  # race: another server may create it meanwhile
                if self.__own.server is not None:
                    await self.__own.server.shutdown()
            finally:
                self.__own.server = None
                self._svcrun_unbind()
                self.__own.levels.restore()

    async def __undo(self) -> None:
        try:
            await self.__close()
        except Exception:
            # start() raises the error that made this necessary.
            log.exception("%s: the application failed to shut down after that", show(self))

    def _svcrun_count_connections(self) -> int:
        server = self.__own.server
        return 0 if server is None else server.open_connections + self._svcrun_count_waiting()

    def _svcrun_make_endpoint(self) -> Endpoint:
        inherited = None if self.fd is None else socket.socket(fileno=self.fd)
        try:
            return Endpoint(
                type(self).__qualname__,
                address=self.address,
                port=self.port,
                path=self.uds if self.path is None else self.path,
                sock=self.sock if inherited is None else inherited,
                options=self.options,
                reuse_port=self.reuse_port,
                keepalive=self._svcrun_limit("keepalive"),
                scheme="http" if self.__is_plain() else "https",
            )
        finally:
            if inherited is not None:
                inherited.detach()  # start() owns the descriptor

    def __is_plain(self) -> bool:
        return self.ssl_certfile is None and self.ssl_context_factory is None


class _Run:
    """The server of a service, and the progress of its start and stop."""

    def __init__(self, _: UvicornService) -> None:
        self.server: Server | None = None
        self.owns_descriptor = False
        self.is_starting = False
        self.is_stop_requested = False
        self.stop = SharedStop()
        self.levels = LogLevels()
