"""The answers to liveness and readiness probes."""

from __future__ import annotations

import ipaddress
import json
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from svcrun._health.http import Request, Response
from svcrun._health.metrics import Metrics
from svcrun._health.page import CONTENT_SECURITY_POLICY, StatusPage
from svcrun._util.current_service import name_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from svcrun._health.status import ProgramStatus, ServiceStatus
    from svcrun._insight.loop_watch import Blocker, LoopWatch

__all__ = ("Probes",)

BUSY_AFTER: Final = 1.0
"""Seconds after which a response tells that the event loop is blocked."""


class Probes:
    """Answer the requests of probes, in any thread.

    :param status: the status of the program.
    :param watch: the watch over its event loop.
    :param hung_after: seconds for which the loop may be blocked.
    :param expose: whether peers beyond loopback are shown stacks, paths and errors as well.
    """

    def __init__(
        self, status: ProgramStatus, watch: LoopWatch, hung_after: float, *, expose: bool
    ) -> None:
        self._status = status
        self._watch = watch
        self._hung_after = hung_after
        self._expose = expose
        self._routes = {"/livez": self._livez, "/readyz": self._readyz}
        self._metrics = _expose(Metrics(status, watch))
        self._page = StatusPage(status, watch, BUSY_AFTER)

    def respond(self, request: Request, peer: object) -> Response | Callable[[], Response]:
        """Return the response to `request` of `peer`, or a function that makes it slowly."""
        if request.path == "/metrics":
            return partial(self._metrics, request)
        in_detail = self._expose or (is_local(peer) and request.is_direct)
        if request.path == "/" and in_detail:
            return partial(self._show, request)
        route = self._routes.get(request.path)
        if route is None:
            paths = ", ".join([*self._routes, "/metrics"])
            return Response(HTTPStatus.NOT_FOUND, f"not found; try {paths}\n")
        answer = route(in_detail=in_detail)
        if request.wants_json():
            body = json.dumps(answer.data, indent=2, ensure_ascii=False) + "\n"
            return Response(answer.status, body, "application/json")
        return Response(answer.status, answer.text)

    def _show(self, request: Request) -> Response:
        is_part = request.query == "fragment"
        text = self._page.render_status() if is_part else self._page.render()
        policy = f"Content-Security-Policy: {CONTENT_SECURITY_POLICY}"
        return Response(HTTPStatus.OK, text, "text/html; charset=utf-8", (policy,))

    def _livez(self, *, in_detail: bool) -> _Answer:
        blocker = self._watch.blocker(BUSY_AFTER)
        if blocker is None:
            return _Answer(HTTPStatus.OK, "ok\n", {"status": "ok"})
        is_hung = blocker.lag >= self._hung_after
        status = HTTPStatus.SERVICE_UNAVAILABLE if is_hung else HTTPStatus.OK
        word = "hung" if is_hung else "busy"
        data: dict[str, Any] = {"status": word, "blocked_for": round(blocker.lag, 3)}
        text = f"{word}: event loop blocked for {blocker.lag:.3g} s"
        if blocker.service is not None:
            data["service"] = name = name_of(blocker.service)
            text += f" by {name}"
        if in_detail:
            data["stack"] = blocker.stack.splitlines()
            text += f"\n{blocker.stack if is_hung else last_call(blocker)}"
        return _Answer(status, f"{text}\n", data)

    def _readyz(self, *, in_detail: bool) -> _Answer:
        services = self._status.services()
        problems = [_explain(one, in_detail=in_detail) for one in services if one.problem]
        if not self._status.is_ready:
            problems.insert(0, "starting or shutting down")
        blocker = self._watch.blocker(self._hung_after)
        if blocker is not None:
            problems.insert(0, f"event loop blocked for {blocker.lag:.3g} s")
        is_ready = not problems
        data = {
            "status": "ready" if is_ready else "not ready",
            "problems": problems,
            "services": {one.label: one.state for one in services},
        }
        status = HTTPStatus.OK if is_ready else HTTPStatus.SERVICE_UNAVAILABLE
        text = "ready\n" if is_ready else "".join(f"{problem}\n" for problem in problems)
        return _Answer(status, text, data)


def _expose(metrics: Metrics) -> Callable[[Request], Response]:
    """Return a function that responds to scrapes; without the library, that it is missing."""
    try:
        from svcrun._health.prometheus import Exposition
    except ImportError:
        hint = "/metrics needs prometheus-client: pip install 'svcrun[prometheus]'\n"
        return lambda _: Response(HTTPStatus.NOT_IMPLEMENTED, hint)
    return Exposition(metrics).respond


class _Answer(NamedTuple):
    status: HTTPStatus
    text: str
    data: dict[str, Any]


def _explain(status: ServiceStatus, *, in_detail: bool) -> str:
    detail = f" ({status.detail})" if in_detail and status.detail else ""
    return f"{status.label}: {status.problem}{detail}"


def last_call(blocker: Blocker) -> str:
    """Return the innermost call of the code that blocks the loop."""
    lines = blocker.stack.splitlines()
    first = max((n for n, line in enumerate(lines) if line.startswith('  File "')), default=0)
    return "\n".join(lines[first:])


def is_local(peer: object) -> bool:
    """Return whether the address of a client is one of loopback, or a Unix socket."""
    if not isinstance(peer, tuple):
        return True
    address = ipaddress.ip_address(str(peer[0]).partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
