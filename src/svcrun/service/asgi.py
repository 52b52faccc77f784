"""Services that run ASGI applications on aiohttp's server."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, ClassVar

try:
    from aiohttp import web
    from aiohttp_asgi.resource import (
        ASGIApplicationType,
        ASGIReceiveType,
        ASGIScopeType,
        ASGISendType,
    )
except ImportError as error:
    msg = "svcrun.service.asgi needs aiohttp-asgi: pip install 'svcrun[asgi]'"
    raise ImportError(msg) from error

from svcrun._util.validation import number, one_of, optional
from svcrun._web.application import check_application, is_factory, load
from svcrun._web.asgi.resource import ASGIRunner, Resource
from svcrun._web.asgi.websocket import WebSocketOptions
from svcrun._web.lifespan import Lifespan, Mode
from svcrun.errors import MissingParameters, ParameterTypeError
from svcrun.service._parameters import parameter
from svcrun.service.aiohttp import AIOHTTPService, AIOHTTPSSLService

__all__ = (
    "ASGIApplicationType",
    "ASGIHTTPSSLService",
    "ASGIHTTPService",
    "ASGIReceiveType",
    "ASGIScopeType",
    "ASGISendType",
)

log = logging.getLogger(__name__)

# The arguments of a call of an application: scope, receive, send.
_ARGUMENTS = 3


class ASGIHTTPService(AIOHTTPService, base=True):
    """Serve an ASGI application, such as one of FastAPI, Starlette or Django.

    Pass it as `app`, or override :meth:`create_asgi_app`. It receives the events of the lifespan
    protocol; if it replies that its start-up failed, the start of the service fails. When a client
    disconnects, the application receives a message and is not cancelled. It may work on after its
    response is complete, without delaying the next request; a stop waits for it as for requests in
    flight. Event streams of sse-starlette end when the stop begins.

    The parameters of :class:`~svcrun.service.aiohttp.AIOHTTPService`, and those below, all by
    keyword:

    :param app: an ASGI 3 application, a factory (a function or coroutine function without
        parameters that returns one), or ``"package.module:name"`` of either.
    :param lifespan: whether the application has a lifespan. ``"auto"``, the default: it has none if
        it raises an error instead of starting up. ``"on"``: such an error fails the start.
        ``"off"``: the application is not called for its lifespan.
    :param ws_max_size: the maximum size of a web socket message, in bytes; 16 MiB by default.
    :param ws_ping_interval: seconds without data from the client of a web socket after which it is
        sent a Ping frame, and has half of that time to answer; 20 by default, None for no pings.
    :param ws_per_message_deflate: whether to compress web socket messages if the client supports
        it; True by default.

    `handler_cancellation` has no effect.

    :raises AttributeError: if there is neither `app` nor a :meth:`create_asgi_app`.
    :raises ValueError, TypeError: if a parameter has a value that is not accepted.

    .. code-block:: python

        app = FastAPI()


        @app.get("/")
        async def root():
            return {"message": "Hello World"}


        with entrypoint(ASGIHTTPService(address="::", port=8080, app=app)) as loop:
            loop.run_forever()
    """

    __async_required__: ClassVar[Any] = ("create_asgi_app",)

    app: Any = None
    lifespan: Mode = parameter(default="auto", check=one_of("auto", "on", "off"))
    ws_max_size: int = parameter(
        default=16 * 1024 * 1024, check=number(low=1, whole=True, unit="bytes")
    )
    ws_ping_interval: float | None = parameter(
        default=20.0, check=optional(number(low=0.001, unit="seconds"), "no pings")
    )
    ws_per_message_deflate: bool = True

    _svcrun_runner_class = ASGIRunner

    async def create_asgi_app(self) -> ASGIApplicationType:
        """Return the application. Each start calls this.

        :raises TypeError: if `app` is neither an application nor a factory of one.
        """
        made: object = await load(self, self.app, lambda app: is_factory(app, _ARGUMENTS))
        if not callable(made):
            accepted = "an ASGI application or a factory"
            raise ParameterTypeError(type(self).__qualname__, "app", made, accepted)
        return made

    async def create_application(self) -> web.Application:
        """Return an aiohttp application whose only resource is the ASGI application."""
        asgi_app = await self.create_asgi_app()
        found: object = asgi_app
        if not callable(found):
            name = "the result of create_asgi_app()"
            raise ParameterTypeError(self, name, found, "an ASGI application")
        resource = Resource(
            asgi_app,
            Lifespan(self, asgi_app, self.lifespan, self.shutdown_timeout, log),
            WebSocketOptions(self.ws_max_size, self.ws_ping_interval, self.ws_per_message_deflate),
        )
        application = web.Application()
        application.router.register_resource(resource)
        resource.lifespan_mount(application)
        return application

    def _svcrun_runner_kwargs(self) -> dict[str, Any]:
        return {
            "auto_decompress": False,  # the headers of the request have to describe its body
            **super()._svcrun_runner_kwargs(),
            "handler_cancellation": True,  # so that aiohttp reports when a client disconnects
        }

    def _svcrun_check_together(self) -> None:
        super()._svcrun_check_together()
        cls, owner = type(self), type(self).__qualname__
        check_application(self, ASGIHTTPService, "create_asgi_app")
        if self.app is None and cls.create_asgi_app is ASGIHTTPService.create_asgi_app:
            raise MissingParameters(owner, {"app"})


class ASGIHTTPSSLService(AIOHTTPSSLService, ASGIHTTPService, base=True):
    """Serve an ASGI application by HTTPS.

    The parameters of :class:`~svcrun.service.aiohttp.AIOHTTPSSLService` and those of
    :class:`ASGIHTTPService`.

    .. code-block:: python

        service = ASGIHTTPSSLService(
            cert="cert.pem", key="key.pem", port=8443, app="package.module:app"
        )
        with entrypoint(service) as loop:
            loop.run_forever()
    """

    if TYPE_CHECKING:
        __init__ = AIOHTTPSSLService.__init__

    app: Any = None
