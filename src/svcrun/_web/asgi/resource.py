"""An ASGI application as a resource of an aiohttp application."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aiohttp import ClientRequest, hdrs, web
from aiohttp_asgi import ASGIResource
from aiohttp_asgi.resource import ASGIMatchInfo

from svcrun._web.aiohttp.site import Runner
from svcrun._web.asgi.http import HTTPExchange
from svcrun._web.asgi.websocket import WebSocketExchange, is_web_socket
from svcrun._web.event_streams import ended_event_streams

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from aiohttp_asgi.resource import ASGIApplicationType

    from svcrun._web.aiohttp.site import RequestHandler
    from svcrun._web.asgi.exchange import Exchange
    from svcrun._web.asgi.websocket import WebSocketOptions
    from svcrun._web.lifespan import Lifespan

__all__ = ("ASGIRunner", "Resource")


class MatchInfo(ASGIMatchInfo):
    """A request for the application, whatever it asks for."""

    @property
    def expect_handler(self) -> Callable[[web.Request], Awaitable[None]]:
        """Leave it to the application whether it wants the body."""
        return _expect_nothing


async def _expect_nothing(_: web.Request) -> None:
    """Do nothing: the resource sees to it."""


class Resource(ASGIResource):
    """Answers every request by a call of the application.

    :param app: the application.
    :param lifespan: tells it of its start and end, and knows its state.
    :param options: for its web sockets.
    """

    def __init__(
        self, app: ASGIApplicationType, lifespan: Lifespan, options: WebSocketOptions
    ) -> None:
        super().__init__(app, root_path="/")
        self._app = app
        self._lifespan = lifespan
        self._options = options

    async def resolve(self, _: web.Request) -> tuple[Any, set[str]]:
        """Take every request."""
        return MatchInfo(self.answer), ClientRequest.ALL_METHODS

    def lifespan_mount(self, app: web.Application) -> None:
        """Have the ASGI application live as long as `app`."""

        async def live(_: web.Application) -> AsyncIterator[None]:
            await self._lifespan.startup()
            yield
            await self._lifespan.shutdown()

        app.cleanup_ctx.append(live)

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Call the application for a request.

        :raises HTTPExpectationFailed: if its client expects what there is not.
        """
        headers = request.headers
        expected = headers.get(hdrs.EXPECT)
        if expected and expected.lower() != "100-continue":
            raise web.HTTPExpectationFailed(text=f"nobody knows how to fulfil {expected!r}")
        state = self._lifespan.state
        exchange: Exchange
        if hdrs.UPGRADE in headers and is_web_socket(request):
            exchange = WebSocketExchange(self._app, request, state, self._options)
        else:
            exchange = HTTPExchange(self._app, request, state)
        return await exchange.run()


class ASGIRunner(Runner):
    """Runs an application that has a resource for an ASGI application, and mostly nothing else."""

    async def cleanup(self) -> None:
        """End event streams at once, then clean up as :class:`Runner` does."""
        with ended_event_streams():
            await super().cleanup()

    def _choose_handler(self, handler: RequestHandler) -> RequestHandler:
        app = self.app
        resources = tuple(app.router.resources())
        match resources:
            case [Resource() as only] if not app.middlewares and not app.on_response_prepare:
                # Without the router: there is nothing to choose, and it finds no resource at all
                # for what has no path, such as "OPTIONS *".
                return only.answer
        return handler
