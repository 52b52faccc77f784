"""An ASGI application as a resource of an aiohttp application."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aiohttp import ClientRequest, hdrs, web
from aiohttp_asgi import ASGIResource
from aiohttp_asgi.resource import ASGIMatchInfo

from svcrun.service._asgi.http import HTTPExchange
from svcrun.service._asgi.websocket import WebSocketExchange, is_web_socket

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from aiohttp_asgi.resource import ASGIApplicationType

    from svcrun.service._asgi.exchange import Exchange
    from svcrun.service._asgi.lifespan import Lifespan
    from svcrun.service._asgi.websocket import WebSocketOptions

__all__ = ("Resource",)


class MatchInfo(ASGIMatchInfo):
    """A request for the application, whatever it asks for."""

    @property
    def expect_handler(self) -> Callable[[web.Request], Awaitable[None]]:
        """Leave it to the application whether it wants the body."""
        return _check_expectation


async def _check_expectation(request: web.Request) -> None:
    expected = request.headers.get(hdrs.EXPECT, "")
    if expected.lower() != "100-continue":
        raise web.HTTPExpectationFailed(text=f"nobody knows how to fulfil {expected!r}")


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
        return MatchInfo(self._handle), ClientRequest.ALL_METHODS

    def lifespan_mount(self, app: web.Application) -> None:
        """Have the ASGI application live as long as `app`."""

        async def live(_: web.Application) -> AsyncIterator[None]:
            await self._lifespan.start()
            yield
            await self._lifespan.stop()

        app.cleanup_ctx.append(live)

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        state = self._lifespan.state
        exchange: Exchange
        if hdrs.UPGRADE in request.headers and is_web_socket(request):
            exchange = WebSocketExchange(self._app, request, state, self._options)
        else:
            exchange = HTTPExchange(self._app, request, state)
        return await exchange.run()
