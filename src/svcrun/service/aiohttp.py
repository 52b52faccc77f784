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
from svcrun.errors import AlreadyRunning, ParameterError, ParameterTypeError, show
from svcrun.service._internals import overridable, part_of
from svcrun.service._listening import Listening
from svcrun.service._parameters import parameter, several
from svcrun.service._secure import Secure
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

# What the entrypoint, or a parameter of the service, sees to.
_NOT_OF_THE_RUNNER = {
    "handle_signals": "left out (the entrypoint handles signals)",
    "shutdown_timeout": "left out (use the parameter shutdown_timeout)",
    "loop": "left out (it is the loop that the service runs in)",
}


class AIOHTTPService(Listening, base=True):
    """Serve an aiohttp application.

    Give it as `app`, or override :meth:`create_application`. The place is bound before the
    application is made, and clients are let in when it has started. At the stop the listener is
    closed first. Requests under way get `shutdown_timeout` seconds, web sockets are closed by code
    1001 (going away); what is left is cancelled. Then the application cleans up.

    :param address: an IP address, a host name, or the path of a Unix socket; ``"localhost"`` by
        default. See :class:`svcrun._net.endpoint.Endpoint`.
    :param port: 0 to 65535; 0 takes a free one. Once started, :attr:`address` and :attr:`port`
        tell what was bound.
    :param sock: a bound socket, in place of `address` and `port`; closed at the end.
    :param shutdown_timeout: seconds that requests have to end at the stop; 5 by default, 0 for
        none.
    :param handler_cancellation: cancel a handler whose client has gone.
    :param runner_kwargs: what else aiohttp's server takes, such as ``keepalive_timeout``,
        ``access_log_format``, or ``access_log=None`` for no access log.
    :param app: an :class:`aiohttp.web.Application`, a function or coroutine function that makes
        one, or ``"package.module:name"`` of either. If the service may be started again, better
        let it be made.
    :param path: the path of a Unix socket, in place of `address` and `port`. Its file is removed
        at the end.
    :param options: socket options as ``(level, option, value)``.
    :param reuse_port: let several processes listen on this port. Off by default.
    :param backlog: how many connections may wait to be accepted; 1024 by default.

    :raises ValueError, TypeError: naming the parameter with a value that can't be used.

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

    _svcrun_runner_class: ClassVar[type[Runner]] = Runner

    def _svcrun_arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        kwargs = super()._svcrun_arguments(args, kwargs)
        if "address" not in kwargs and not kwargs.keys().isdisjoint({"path", "sock"}):
            kwargs["address"] = None  # the default is not meant then
        return kwargs

    @property
    def __own(self) -> _Serving:
        return part_of(self, _Serving)

    @overridable
    def runner(self) -> web.BaseRunner | None:
        """The runner of the application, while the service runs."""
        return self.__own.runner

    @overridable
    def site(self) -> web.BaseSite | None:
        """The site that listens, while the service runs."""
        return self.__own.site

    async def create_application(self) -> web.Application:
        """Make the application; called at each start.

        :raises TypeError: if `app` is no application, and makes none.
        """
        if self.app is None:
            return web.Application()
        made = await load(self, self.app, _is_factory)
        if not isinstance(made, web.Application):
            accepted = "an aiohttp.web.Application or a factory"
            raise ParameterTypeError(type(self).__qualname__, "app", made, accepted)
        return made

    async def make_runner(self, application: web.Application) -> web.BaseRunner:
        """Make what runs the application.

        A runner of another class stops in the way of that class.
        """
        return self._svcrun_runner_class(
            application,
            owner=self,
            shutdown_timeout=self.shutdown_timeout,
            **{
                "access_log_class": AccessLogger,
                "access_log_format": AccessLogger.LOG_FORMAT,
                "handler_cancellation": self.handler_cancellation,
                **self._svcrun_runner_kwargs(),
            },
        )

    async def create_site(self) -> web.BaseSite:
        """Make what listens on :attr:`socket` for the :attr:`runner`.

        :raises RuntimeError: if there is none of them yet.
        """
        if self.__own.runner is None or self._svcrun_socket is None:
            raise RuntimeError(f"{self!r}: create_site() is called by start()")
        return Site(
            self.__own.runner,
            self._svcrun_socket,
            backlog=self.backlog,
            tls=self._svcrun_secure(),
            is_shared=self.sock is not None,
        )

    async def start(self) -> None:
        """Bind the socket, start the application, and let clients in.

        :raises OSError: if the address can't be bound; it names address, port and service.
        """
        if self.__own.is_starting or self._svcrun_socket is not None:
            raise AlreadyRunning(self)
        self.__own.is_starting, self.__own.is_interrupted = True, False
        try:
            sock = await self._svcrun_bind()
            self.__go_on()
            application = await self.create_application()
            self.__go_on()
            self.__own.runner = await self.make_runner(application)
            await self.__own.runner.setup()
            self.__go_on()
            self.__own.site = await self.create_site()
            self.__go_on()
            if isinstance(self.__own.site, web.SockSite):  # other sites bind the address themselves
                self._svcrun_endpoint.listen(sock, self.backlog, self)
            await self.__own.site.start()
        except BaseException:
            await self.__undo_start()
            raise
        finally:
            self.__own.is_starting = False

    async def stop(self, exception: Any = None) -> None:
        """Let nobody in any more, see to the clients, then clean up the application.

        A start() that is not done yet fails, and undoes what it has done.
        """
        if self.__own.stop.is_running:
            if self.__own.runner is not None and isinstance(self.__own.runner.server, Server):
                # What calls this may be what that stop waits for.
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
                self._svcrun_endpoint.remove_file()  # before the socket is closed
                try:
                    if self.__own.runner is not None:
                        await self.__own.runner.cleanup()
                finally:
                    await super().stop(exception)
            finally:
                self.__forget()

    def __go_on(self) -> None:
        if self.__own.is_interrupted:
            raise RuntimeError(f"{show(self)} was stopped before it had started")

    async def __undo_start(self) -> None:
        try:
            if self.__own.runner is not None:
                await self.__own.runner.cleanup()
        except Exception:
            # What comes out is why it could not start.
            log.exception("%s: the application failed to clean up after that", show(self))
        finally:
            self.__forget()

    def __forget(self) -> None:
        self.__own.runner = self.__own.site = None
        self._svcrun_unbind()

    def _svcrun_secure(self) -> Secure | None:
        return None

    def _svcrun_runner_kwargs(self) -> dict[str, Any]:
        """Return `runner_kwargs` as a dictionary.

        :raises ValueError, TypeError: if they can't be used.
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
                # aiohttp would leave out all of them, with a warning at each connection.
                accepted = f"one of {', '.join(sorted(KEYWORDS))}"
                raise ParameterError(owner, where, value, accepted)
        return found

    def _svcrun_check_together(self) -> None:
        super()._svcrun_check_together()
        check_import_string(self)
        check_application(self, AIOHTTPService, "create_application")
        self._svcrun_runner_kwargs()  # for its checks


class _Serving:
    """The runner and the site of a service."""

    def __init__(self, _: AIOHTTPService) -> None:
        self.runner: web.BaseRunner | None = None
        self.site: web.BaseSite | None = None
        self.stop = SharedStop()
        self.is_starting = False
        # Race: whether stop() was called during the start.
        self.is_interrupted = False


def _is_factory(app: Any) -> bool:
    return callable(app) and not isinstance(app, web.Application)


class AIOHTTPSSLService(Secure, AIOHTTPService, base=True):
    """Serve an aiohttp application by HTTPS.

    As :class:`AIOHTTPService`, with these parameters besides. A handshake that fails is one line
    in the log and concerns no other client.

    :param cert: a PEM file with the server's certificate, and those between it and its authority.
    :param key: a PEM file with its private key, not encrypted.
    :param ca: a PEM file with the authorities of clients' certificates.
    :param verify: with `ca`, check the certificate of a client that shows one.
    :param require_client_cert: refuse a client without a certificate of `ca`.
    :param minimum_version: the lowest version to speak; TLS 1.3 by default.
    :param maximum_version: the highest one.
    :param ciphers: OpenSSL's names of the ciphers for TLS 1.2 and before.
    :param ssl_handshake_timeout: seconds that a handshake may take; 10 by default.

    :raises FileNotFoundError: if a file is absent, naming the parameter and the path.
    :raises ValueError, TypeError: naming the parameter with a value that can't be used.

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
            sock: socket.socket | None = None,
            shutdown_timeout: float = 5,
            require_client_cert: bool = False,
            **kwargs: Any,
        ) -> None: ...

    async def start(self) -> None:
        """Read the certificates, and do what :class:`AIOHTTPService` does.

        :raises OSError: if a file can't be read, or the address not be bound.
        :raises ValueError: if a file does not contain what its parameter asks for.
        """
        if not self._svcrun_is_serving():
            self._svcrun_read_certificates()
        await super().start()

    def _svcrun_is_serving(self) -> bool:
        return part_of(self, _Serving).site is not None

    def _svcrun_secure(self) -> Secure:
        return self
