"""An ASGI application as the resource of an aiohttp application."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aiohttp import ClientRequest, hdrs, web
from aiohttp_asgi import ASGIResource
from aiohttp_asgi.resource import ASGIMatchInfo

from svcrun._web.aiohttp.site import Runner
from svcrun._web.asgi.http import HTTPCycle
from svcrun._web.asgi.websocket import WebSocketCycle, is_web_socket
from svcrun._web.event_streams import ended_event_streams

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from aiohttp_asgi.resource import ASGIApplicationType

    from svcrun._web.aiohttp.site import RequestHandler
    from svcrun._web.asgi.request_cycle import RequestCycle
    from svcrun._web.asgi.websocket import WebSocketOptions
    from svcrun._web.lifespan import Lifespan

__all__ = ("ASGIRunner", "Resource")


class MatchInfo(ASGIMatchInfo):
    """The match of any request."""

    @property
    def expect_handler(self) -> Callable[[web.Request], Awaitable[None]]:
        """The handler of the header Expect: the application decides whether to receive a body."""
        return _expect_nothing


async def _expect_nothing(_: web.Request) -> None:
    """Do nothing: :meth:`HTTPCycle.next_message` sends ``100 Continue``."""


class Resource(ASGIResource):
    """Handle every request by a call of the application.

    :param app: the application.
    :param lifespan: the lifespan of the application.
    :param options: the options of web sockets.
    """

    def __init__(
        self, app: ASGIApplicationType, lifespan: Lifespan, options: WebSocketOptions
    ) -> None:
        super().__init__(app, root_path="/")
        self._app = app
        self._lifespan = lifespan
        self._options = options

    async def resolve(self, _: web.Request) -> tuple[Any, set[str]]:
        """Match every request."""
        return MatchInfo(self.answer), ClientRequest.ALL_METHODS

    def lifespan_mount(self, app: web.Application) -> None:
        """Run the lifespan of the ASGI application in a clean-up context of `app`."""

        async def run_lifespan(_: web.Application) -> AsyncIterator[None]:
            await self._lifespan.startup()
            yield
            await self._lifespan.shutdown()

        app.cleanup_ctx.append(run_lifespan)

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Call the application for a request, and return its response.

        :raises HTTPExpectationFailed: if the client expects anything but ``100-continue``.
        """
        headers = request.headers
        expected = headers.get(hdrs.EXPECT)
        if expected and expected.lower() != "100-continue":
            raise web.HTTPExpectationFailed(text=f"unsupported expectation: {expected}")
        state = self._lifespan.state
        exchange: RequestCycle
        if hdrs.UPGRADE in headers and is_web_socket(request):
            exchange = WebSocketCycle(self._app, request, state, self._options)
        else:
            exchange = HTTPCycle(self._app, request, state)
        return await exchange.run()


class ASGIRunner(Runner):
    """Run an aiohttp application whose resource is an ASGI application."""

    async def cleanup(self) -> None:
        """End event streams, then shut down as :class:`Runner` does."""
        with ended_event_streams():
            await super().cleanup()

    def _choose_handler(self, handler: RequestHandler) -> RequestHandler:
        app = self.app
        resources = tuple(app.router.resources())
        match resources:
            case [Resource() as only] if not app.middlewares and not app.on_response_prepare:
                # Skip the router: it has one choice, and finds no resource for requests without
                # a path, such as "OPTIONS *".
                return only.answer
        return handler
