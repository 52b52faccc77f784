"""A service that runs an ASGI application on uvicorn."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from typing import TYPE_CHECKING, Any, ClassVar, Literal

try:
    import uvicorn
    from uvicorn.config import LOG_LEVELS
except ImportError as error:
    msg = "svcrun.service.uvicorn needs uvicorn: pip install 'svcrun[uvicorn]'"
    raise ImportError(msg) from error

from svcrun._net.endpoint import Endpoint
from svcrun._web.application import check_application, check_import_string, is_factory, load
from svcrun._web.uvicorn.options import (
    UvicornApplication,
    changed,
    check_values,
    refuse_loop,
    settle_place,
)
from svcrun._web.uvicorn.server import STOPPED_EARLY, Server
from svcrun.errors import (
    AlreadyRunning,
    MissingParameters,
    ParameterError,
    ParameterTypeError,
    ServerEnded,
    show,
)
from svcrun.service._internals import internals_of, overridable, part_of
from svcrun.service._listening import Listening

if TYPE_CHECKING:
    import os
    from collections.abc import Awaitable, Callable

    from uvicorn.config import (
        HTTPProtocolType,
        InterfaceType,
        LifespanType,
        WSProtocolType,
    )

    Path = str | os.PathLike[str]
    ContextFactory = Callable[[uvicorn.Config, Callable[[], ssl.SSLContext]], ssl.SSLContext]

__all__ = ("UvicornApplication", "UvicornService")

log = logging.getLogger(__name__)

_LOGGERS = ("uvicorn.error", "uvicorn.access", "uvicorn.asgi")

# OpenSSL asks the terminal for the password of a key, and blocks, unless it is told one.
_NO_PASSWORD = "no password was given"  # noqa: S105


class UvicornService(Listening):
    """Serve an ASGI application by uvicorn.

    Give it as `app`, or override :meth:`create_application`. The place is bound before the
    application is made, and clients are let in when it has started. At the stop the listener is
    closed first. Requests under way get `shutdown_timeout` seconds, web sockets are closed by code
    1012 (service restart); what is left is cancelled. Then the application is told of its end, for
    which it has as long again, and a second at least.

    Signals are the entrypoint's, and what uvicorn logs goes where the entrypoint's log goes.

    :param app: an ASGI application, a function or coroutine function without parameters that makes
        one, or ``"package.module:name"`` of either. If the service may be started again, better
        let it be made.
    :param address: an IP address, a host name, or the path of a Unix socket. See
        :class:`svcrun._net.endpoint.Endpoint`.
    :param host: the same, by uvicorn's name; ``"127.0.0.1"`` by default.
    :param port: 0 to 65535; 8080 by default, 0 takes a free one. Once started, :attr:`address` and
        :attr:`port` tell what was bound.
    :param path: the path of a Unix socket, in place of `address` and `port`. Its file is removed
        at the end.
    :param uds: the same, by uvicorn's name.
    :param sock: a bound socket, in place of `address` and `port`; closed at the end.
    :param fd: the number of a descriptor that the process has inherited, of a bound socket of any
        family; closed at the end as well.
    :param options: socket options as ``(level, option, value)``.
    :param reuse_port: let several processes listen on this port. Off by default.
    :param shutdown_timeout: seconds that requests have to end at the stop, and the application
        after them; 5 by default, 0 for none.
    :param timeout_graceful_shutdown: the seconds of the requests, if they differ.
    :param factory: call `app` for the application, whatever its parameters look like.
    :param log_level: the level of uvicorn's loggers while the service runs, as a number or a name;
        that of the root logger by default.
    :param access_log: log a line for each request; on by default.

    Each other option of :class:`uvicorn.Config` is a parameter as well, and has uvicorn's default.
    Some are refused: ``reload``, ``workers`` and ``env_file``, as a service can't do what they ask
    for, and ``loop``, which is the entrypoint's.

    :raises ValueError, TypeError: naming the parameter with a value that can't be used.
    :raises FileNotFoundError: if a file of TLS is absent, naming the parameter and the path.
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
    _svcrun_several: ClassVar[Any] = ("forwarded_allow_ips", "headers")

    app: Any = None
    shutdown_timeout: float = 5

    # The options of uvicorn.Config, in its order. `loop` is what every service has.
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
    forwarded_allow_ips: list[str] | str | None = None
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
    headers: list[tuple[str, str]] | None = None
    factory: bool = False
    h11_max_incomplete_event_size: int | None = None
    reset_contextvars: bool = False

    def __init__(self, **kwargs: Any) -> None:
        cls = type(self)
        for loop in (kwargs.get("loop"), cls.loop):
            refuse_loop(self, loop)
        if isinstance(kwargs.get("loop"), str):
            del kwargs["loop"]
        super().__init__(**settle_place(self, kwargs))
        check_application(self, UvicornService, "create_application")
        if self.app is None and cls.create_application is UvicornService.create_application:
            raise MissingParameters(cls.__qualname__, ("app",))

    @property
    def __own(self) -> _Hosting:
        return part_of(self, _Hosting)

    @overridable
    def server(self) -> Server | None:
        """The server of uvicorn, while the service runs."""
        return self.__own.server

    async def create_application(self) -> Any:
        """Make the application; called at each start."""
        return await load(self, self.app, lambda app: self.factory or is_factory(app, 3))

    async def start(self) -> None:
        """Bind the socket, start the application, let clients in, and run until the stop.

        :raises OSError: if the address can't be bound; it names address, port and service.
        :raises ApplicationStartFailed: if the application says that it can't start, or fails to.
        :raises ServerEnded: if uvicorn ends without a :meth:`stop`.
        """
        if self.__own.is_starting or self._svcrun_socket is not None:
            raise AlreadyRunning(self)
        started = internals_of(self).start_event
        started.clear()  # which is new for each start, but for one by hand
        self.__own.is_starting, self.__own.is_asked_to_stop = True, False
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
        if self.__own.is_asked_to_stop:
            if self.__own.closing is not None:
                await asyncio.wait((self.__own.closing,))
            return
        limit = self.limit_max_requests
        reason = "should_exit was set" if limit is None else f"limit_max_requests={limit}"
        await self.__undo()
        raise ServerEnded(self, reason)

    async def stop(self, exception: Any = None) -> None:
        """Let nobody in any more, bring requests to their ends, then end the application.

        A :meth:`start` that is not done yet fails, and undoes what it has done.

        :raises ApplicationStopFailed: if the application did not come to a good end.
        """
        self.__own.is_asked_to_stop = True
        try:
            await self.__close()
        finally:
            await super().stop(exception)

    async def __start_server(self) -> Server:
        sock = await self.__bind_place()
        try:
            self.__check_goes_on()
            self.__set_levels()
            application = await self.create_application()
            self.__check_goes_on()
            server = self.__own.server = self.__make_server(application)
            await server.startup([sock])
        except BaseException:
            if self._svcrun_socket is sock:
                await self.__undo()
            raise
        return server

    def __check_goes_on(self) -> None:
        if self.__own.is_asked_to_stop:
            raise ServerEnded(self, STOPPED_EARLY)

    async def __bind_place(self) -> socket.socket:
        if self.fd is None or self.__own.is_descriptor_taken:
            return await self._svcrun_bind()
        inherited = self._svcrun_endpoint.sock = socket.socket(fileno=self.fd)
        try:
            sock = await self._svcrun_bind()
        except BaseException:
            inherited.detach()  # it is not ours yet
            raise
        self.__own.is_descriptor_taken = True
        return sock

    def __make_server(self, application: Any) -> Server:
        config = self.__make_config(application)
        try:
            config.load()
        except ssl.SSLError as error:
            accepted = f"PEM files that OpenSSL can use ({error.reason or error})"
            name = type(self).__qualname__
            raise ParameterError(name, "ssl_certfile", self.ssl_certfile, accepted) from error
        limit = "shutdown_timeout"
        if self.timeout_graceful_shutdown is not None:
            limit = "timeout_graceful_shutdown"
        return Server(
            config,
            self,
            self._svcrun_endpoint,
            request_timeout=getattr(self, limit),
            request_limit=limit,
            lifespan_timeout=self.shutdown_timeout,
        )

    def __make_config(self, application: Any) -> uvicorn.Config:
        if not callable(application):
            accepted = "an ASGI application or a factory"
            raise ParameterTypeError(type(self).__qualname__, "app", application, accepted)
        options = changed(self, _DEFAULTS)
        if self.ssl_certfile is not None:
            options.setdefault("ssl_keyfile_password", _NO_PASSWORD)
        if self.port is None:
            options["uds"] = str(self.address)
        else:
            options.update(host=str(self.address), port=self.port)
        config = uvicorn.Config(
            # uvicorn calls what it is given to see whether it is a factory.
            lambda: application,
            factory=True,
            backlog=self.backlog,
            log_config=self.log_config,
            use_colors=self.use_colors,
            workers=1,
            **options,
        )
        # Turned off here, uvicorn would turn it off for all servers of the process, and for good.
        config.access_log = self.access_log
        return config

    async def __close(self) -> None:
        """End what there is, once; whoever comes later waits for that."""
        if self.__own.closing is not None:
            await asyncio.wait((self.__own.closing,))
            return
        sock = self._svcrun_socket
        if sock is None:
            return
        closing = self.__own.closing = asyncio.get_running_loop().create_future()
        try:
            self._svcrun_endpoint.remove_file()  # before the socket is closed
            if self.__own.server is not None:
                await self.__own.server.shutdown([sock])
        finally:
            self.__own.server = None
            self._svcrun_unbind()
            self.__restore_levels()
            self.__own.closing = None
            closing.set_result(None)

    async def __undo(self) -> None:
        try:
            await self.__close()
        except Exception:
            # What comes out of start() is why this was necessary.
            log.exception("%s: the application failed to clean up after that", show(self))

    def __set_levels(self) -> None:
        level = self.log_level
        if level is None:
            return
        for logger in map(logging.getLogger, _LOGGERS):
            self.__own.levels.append((logger, logger.level))
            logger.setLevel(LOG_LEVELS[level.lower()] if isinstance(level, str) else level)

    def __restore_levels(self) -> None:
        for logger, level in self.__own.levels:
            logger.setLevel(level)
        self.__own.levels.clear()

    def _svcrun_make_endpoint(self) -> Endpoint:
        sock = self.sock
        if self.fd is not None:
            sock = socket.socket(fileno=self.fd)
        try:
            return Endpoint(
                type(self).__qualname__,
                address=self.address,
                port=self.port,
                path=self.uds if self.path is None else self.path,
                sock=sock,
                options=self.options,
                reuse_port=self.reuse_port,
                scheme="http" if self.__is_plain() else "https",
            )
        finally:
            if self.fd is not None and sock is not None:
                sock.detach()  # start() takes it

    def __is_plain(self) -> bool:
        return self.ssl_certfile is None and self.ssl_context_factory is None

    def _svcrun_check_parameters(self) -> None:
        super()._svcrun_check_parameters()
        check_import_string(self)
        check_values(self)
        changed(self, _DEFAULTS)  # for its checks


class _Hosting:
    """The server of a service, and the state of its start and stop."""

    def __init__(self, _: UvicornService) -> None:
        self.server: Server | None = None
        self.is_descriptor_taken = False
        self.is_starting = False
        self.is_asked_to_stop = False
        self.closing: asyncio.Future[None] | None = None
        self.levels: list[tuple[logging.Logger, int]] = []


_DEFAULTS = vars(UvicornService)
