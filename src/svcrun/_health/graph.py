"""Draw the services of a program, and their dependencies, as an SVG picture."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Node = tuple[str, str, Sequence[str]]  # the label, the class of the style, the dependencies

__all__ = ("draw",)

MAX_NODES: Final = 60
"""The maximum number of services of a picture; more are shown in the table alone."""

_WIDTH, _HEIGHT = 170, 34
_COLUMN_GAP, _ROW_GAP = 50, 14
_MAX_LABEL = 20


def draw(nodes: Sequence[Node]) -> str:
    """Return a picture of services, each to the right of those that it depends on.

    Without dependencies, the picture would say no more than the table, so it is left out.
    """
    if len(nodes) > MAX_NODES or not any(requires for _, _, requires in nodes):
        return ""
    places = _places({label: requires for label, _, requires in nodes})
    width = max(x for x, _ in places.values()) + _WIDTH + 2
    height = max(y for _, y in places.values()) + _HEIGHT + 2
    name = "The services, each to the right of those that it depends on"
    parts = [
        f'<figure><svg width="{width}" height="{height}" role="img" aria-label="{name}">',
    ]
    for label, _, requires in nodes:
        parts += [_arrow(places[other], places[label]) for other in requires]
    parts += [_box(label, tone, places[label]) for label, tone, _ in nodes]
    return "".join(parts) + "</svg></figure>"


def _places(requires: Mapping[str, Sequence[str]]) -> dict[str, tuple[int, int]]:
    """Return the upper left corner of each service."""
    columns: dict[str, int] = {}

    def column(label: str, seen: tuple[str, ...] = ()) -> int:
        if label not in columns:
            # A cycle can't start, but the services of a program that failed to start are shown too.
            others = [other for other in requires[label] if other not in seen]
            columns[label] = max((column(one, (*seen, label)) + 1 for one in others), default=0)
        return columns[label]

    rows: dict[int, int] = {}
    places = {}
    for label in requires:
        at = column(label)
        row = rows[at] = rows.get(at, -1) + 1
        places[label] = (1 + at * (_WIDTH + _COLUMN_GAP), 1 + row * (_HEIGHT + _ROW_GAP))
    return places


def _arrow(start: tuple[int, int], end: tuple[int, int]) -> str:
    x1, y1 = start[0] + _WIDTH, start[1] + _HEIGHT // 2
    x2, y2 = end[0], end[1] + _HEIGHT // 2
    bend = (x2 - x1) // 2
    return (
        f'<path d="M{x1} {y1}C{x1 + bend} {y1} {x2 - bend} {y2} {x2 - 8} {y2}"/>'
        f'<path class="head" d="M{x2} {y2}l-9 -4v8z"/>'
    )


def _box(label: str, tone: str, place: tuple[int, int]) -> str:
    x, y = place
    short = label if len(label) <= _MAX_LABEL else f"{label[: _MAX_LABEL - 1]}…"
    return (
        f'<g class="{tone}"><title>{escape(label)}</title>'
        f'<rect x="{x}" y="{y}" width="{_WIDTH}" height="{_HEIGHT}" rx="6"/>'
        f'<text x="{x + 10}" y="{y + 22}">{escape(short)}</text></g>'
    )
