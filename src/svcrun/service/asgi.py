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

# How many arguments an application is called with: scope, receive, send.
_ARGUMENTS = 3


class ASGIHTTPService(AIOHTTPService, base=True):
    """Serve an ASGI application, such as one of FastAPI, Starlette or Django.

    Give it as `app`, or override :meth:`create_asgi_app`. It is told of the start and the end of
    its life; a start that it says has failed is a failed start of the service. It is told when a
    client has gone, and not cancelled then. What it does after its response is complete holds up
    no client; the stop of the service waits for it as for requests in flight. Streams of
    sse-starlette end when the stop begins.

    The parameters of :class:`~svcrun.service.aiohttp.AIOHTTPService`, and these besides, all by
    keyword:

    :param app: an ASGI 3 application, a function or coroutine function without parameters that
        makes one, or ``"package.module:name"`` of either.
    :param lifespan: what becomes of an application that raises when it is called for its lifespan.
        ``"auto"``, the default: it does without one. ``"on"``: it has failed to start. ``"off"``:
        it is not called for that.
    :param ws_max_size: bytes of the longest message of a web socket; 16 MiB by default.
    :param ws_ping_interval: seconds of silence on a web socket after which the client is asked
        whether it is still there; 20 by default, None to never ask. It has half of that to answer.
    :param ws_per_message_deflate: compress messages of web sockets if the client can; on by
        default.

    `handler_cancellation` makes no difference here.

    :raises AttributeError: if there is no `app`, nor a method that makes one.
    :raises ValueError, TypeError: naming the parameter with a value that can't be used.

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
        """Make the application; called at each start.

        :raises TypeError: if `app` is no application, and makes none.
        """
        made: object = await load(self, self.app, lambda app: is_factory(app, _ARGUMENTS))
        if not callable(made):
            accepted = "an ASGI application or a factory"
            raise ParameterTypeError(type(self).__qualname__, "app", made, accepted)
        return made

    async def create_application(self) -> web.Application:
        """Make the aiohttp application that the ASGI application is the only resource of."""
        asgi_app = await self.create_asgi_app()
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
            "auto_decompress": False,  # what the client says of its body is to be true
            **super()._svcrun_runner_kwargs(),
            "handler_cancellation": True,  # by which aiohttp tells that a client has gone
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
