"""The status page: an HTML page for people, without resources from elsewhere and without actions.

A browser with JavaScript fetches the part that changes every two seconds, and says so when the
program does not respond. Without JavaScript, the browser loads the whole page again.
"""

from __future__ import annotations

import base64
import hashlib
import os
import sys
import time
from html import escape
from pathlib import PurePath
from typing import TYPE_CHECKING, Final

from svcrun._health.graph import draw
from svcrun._util.current_service import name_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from svcrun._health.status import ProgramStatus, ServiceDetails
    from svcrun._insight.loop_watch import Blocker, LoopWatch

__all__ = ("CONTENT_SECURITY_POLICY", "StatusPage")

_STYLE: Final = """
:root { color-scheme: light dark; --text: #1c2024; --faint: #60646c; --line: #d9d9e0; --back: #fff;
  --good: #18794e; --busy: #ab6400; --bad: #ce2c31; }
@media (prefers-color-scheme: dark) { :root { --text: #edeef0; --faint: #b0b4ba; --line: #43484e;
  --back: #111113; --good: #3dd68c; --busy: #ffca16; --bad: #ff9592; } }
body { margin: 0 auto; max-width: 70rem; padding: 1rem; color: var(--text);
  background: var(--back); font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.4rem; margin: 0 0 .5rem; } h1 small { color: var(--faint); font-weight: normal; }
.banner, #lost { border-left: .4rem solid; padding: .4rem .8rem; margin: 0 0 1rem; }
.banner p { margin: 0; } pre { margin: .4rem 0 0; overflow-x: auto; }
.good { color: var(--good); } .busy { color: var(--busy); } .bad, #lost { color: var(--bad); }
.idle { color: var(--faint); }
figure { margin: 0 0 1rem; overflow-x: auto; }
svg text { font: 14px system-ui, sans-serif; fill: currentColor; }
svg rect { fill: none; stroke: currentColor; stroke-width: 1.5; }
svg path { fill: none; stroke: var(--faint); } svg .head { fill: var(--faint); stroke: none; }
table { border-collapse: collapse; width: 100%; }
caption { text-align: left; font-weight: bold; }
th, td { border-top: 1px solid var(--line); padding: .35rem 1rem .35rem 0; text-align: left;
  vertical-align: top; }
.text { overflow-wrap: anywhere; } th.text { min-width: 9rem; } time { white-space: nowrap; }
th[scope=col] { color: var(--faint); font-weight: normal; }
footer { color: var(--faint); margin-top: 1rem; }
@media (max-width: 40rem) { thead { display: none; } tr { display: block; padding: .5rem 0;
  border-top: 1px solid var(--line); } th, td { display: block; border: 0; padding: 0; }
  td:empty { display: none; }
  td::before { content: attr(data-label) " "; color: var(--faint); } }
"""

_SCRIPT: Final = """
const main = document.querySelector("main"), lost = document.querySelector("#lost");
let shown = "";
async function refresh() {
  try {
    const options = {cache: "no-store", signal: AbortSignal.timeout(5000)};
    const response = await fetch("?fragment", options);
    if (!response.ok) throw new Error(response.status);
    const text = await response.text();
    if (text !== shown) main.innerHTML = shown = text;
    lost.hidden = true;
  } catch {
    lost.hidden = false;
  }
}
setInterval(refresh, 2000);
"""


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


CONTENT_SECURITY_POLICY: Final = (
    f"default-src 'none'; script-src 'sha256-{_hash(_SCRIPT)}'; style-src 'sha256-{_hash(_STYLE)}';"
    " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The header by which a browser runs nothing but the script of the page."""

_TONES: Final = {"running": "good", "failed": "bad", "starting": "busy", "stopping": "busy"}


class StatusPage:
    """The page of one program.

    :param status: the status of the program.
    :param watch: the watch over its event loop.
    :param busy_after: seconds after which the page says that the event loop is blocked.
    """

    def __init__(self, status: ProgramStatus, watch: LoopWatch, busy_after: float) -> None:
        self._status = status
        self._watch = watch
        self._busy_after = busy_after

    def render(self) -> str:
        """Return the whole page."""
        name = escape(PurePath(sys.argv[0]).name or "python")
        return (
            f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{name}</title>\n'
            '<meta name="viewport" content="width=device-width">\n'
            '<noscript><meta http-equiv="refresh" content="2"></noscript>\n'
            f"<style>{_STYLE}</style></head>\n"
            f"<body><h1>{name} <small>process {os.getpid()}</small></h1>\n"
            '<p id="lost" role="alert" hidden>The program does not respond.</p>\n'
            f"<main>{self.render_status()}</main>\n<script>{_SCRIPT}</script></body></html>\n"
        )

    def render_status(self) -> str:
        """Return the part of the page that changes."""
        services = self._status.details()
        lag = self._watch.figures().last
        return "".join(
            (
                self._banner(services),
                draw([(one.label, _tone(one), one.requires) for one in services]),
                "<table><caption>Services</caption><thead><tr>",
                *(f'<th scope="col">{name}</th>' for name in _COLUMNS),
                "</tr></thead><tbody>",
                *map(_row, services),
                f"</tbody></table><footer>Event loop lag {lag:.3f} s</footer>",
            )
        )

    def _banner(self, services: Iterable[ServiceDetails]) -> str:
        problems = [f"{one.label}: {one.problem}" for one in services if one.problem]
        if not self._status.is_ready:
            problems.insert(0, "starting or shutting down")
        blocker = self._watch.blocker(self._busy_after)
        tone = "good"
        if problems or blocker is not None:
            tone = "busy" if blocker is None else "bad"
        lines = [*map(escape, problems)] or ["ready"]
        text = "".join(f"<p>{line}</p>" for line in lines)
        if blocker is not None:
            text = _describe(blocker) + text
        return f'<div class="banner {tone}" role="status">{text}</div>'


_COLUMNS: Final = ("Service", "State", "Since", "Crashes", "Restarts", "Next call", "Last error")
_TEXTS: Final = {"State", "Next call", "Last error"}


def _row(one: ServiceDetails) -> str:
    state = f"{one.state}, {one.problem}" if one.problem not in (None, one.state) else one.state
    cells = (
        f'<span class="{_tone(one)}">{escape(state)}</span>',
        _time(one.since),
        str(one.crashes),
        str(one.restarts),
        "<br>".join(f"{_time(when)} {escape(name)}" for when, name in one.next_calls),
        escape(one.last_error),
    )
    columns = zip(_COLUMNS[1:], cells, strict=True)
    parts = [f'<tr><th scope="row" class="text">{escape(one.label)}</th>']
    for name, cell in columns:
        kind = ' class="text"' if name in _TEXTS else ""
        parts.append(f'<td{kind} data-label="{name}">{cell}</td>')
    return "".join(parts) + "</tr>"


def _tone(one: ServiceDetails) -> str:
    return "busy" if one.problem else _TONES.get(one.state, "idle")


def _describe(blocker: Blocker) -> str:
    who = "" if blocker.service is None else f" by {escape(name_of(blocker.service))}"
    return (
        f"<p>event loop blocked for {blocker.lag:.1f} s{who}</p><pre>{escape(blocker.stack)}</pre>"
    )


def _time(when: float | None) -> str:
    """Return the local time, with the date unless that is today's."""
    if when is None:
        return ""
    local = time.localtime(when)
    is_today = local[:3] == time.localtime()[:3]
    text = time.strftime("%H:%M:%S" if is_today else "%Y-%m-%d %H:%M", local)
    return f'<time datetime="{time.strftime("%Y-%m-%dT%H:%M:%S%z", local)}">{text}</time>'
