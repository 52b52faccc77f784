"""Find the correct name for a misspelt one, for the hints of error messages.

A wrong hint misleads more than no hint. So similar names that are both common, such as "host" and
"port", count as different names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ("is_misspelling", "near_miss")

# MOST_EDITS: the maximum number of edits of a misspelling.
# LONG: the minimum length of a name with more than one edit. Too many shorter names differ by two
# letters ("host", "port").
# SHORT: the maximum length of a name in which no letter may replace another ("post", "port").
MOST_EDITS = 2
LONG = 7
SHORT = 4


def near_miss(name: str, candidates: Iterable[str]) -> str | None:
    """Return the candidate of which `name` is probably a misspelling, or None.

    If several candidates are likely, it returns the one with the fewest edits.

    >>> near_miss("intervall", ["delay", "interval"])
    'interval'
    >>> near_miss("hosts", ["host"]) is None
    True
    """
    found = sorted((distance(name, other), other) for other in candidates if _may_be(name, other))
    return next((other for edits, other in found if _is_likely(name, other, edits)), None)


def is_misspelling(name: str, other: str) -> bool:
    """Return whether `name` is probably a misspelling of `other`."""
    return near_miss(name, (other,)) is not None


def distance(one: str, other: str) -> int:
    """Return the number of edits that turn one name into the other.

    An edit inserts, removes or replaces a letter, or swaps two neighbouring letters.

    >>> distance("callabck", "callback"), distance("prt", "port")
    (1, 1)
    """
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one, 1):
        last, before, row = before, row, [i]
        for j, wanted in enumerate(other, 1):
            edits = min(before[j] + 1, row[-1] + 1, before[j - 1] + (letter != wanted))
            if i > 1 and j > 1 and letter == other[j - 2] and one[i - 2] == wanted:
                edits = min(edits, last[j - 2] + 1)
            row.append(edits)
    return row[-1]


def _may_be(name: str, other: str) -> bool:
    """Return whether `name` may be a misspelling of `other`, before the edits are counted.

    A name that ends in a digit, an inflected form, and a much longer or shorter name are different
    names.
    """
    return (
        name != other
        and abs(len(name) - len(other)) <= MOST_EDITS
        and not name[-1:].isdigit()
        and not any(
            name in {f"{other}{end}", other.removesuffix(end)} for end in ("s", "es", "d", "ed")
        )
    )


def _is_likely(name: str, other: str, edits: int) -> bool:
    letters, wanted = name.lower().replace("_", ""), other.lower().replace("_", "")
    if letters == wanted:
        return True
    if edits > MOST_EDITS or min(len(name), len(other)) < MOST_EDITS + 1:
        return False
    if sorted(letters) == sorted(wanted):
        return True
    # The first letter is rarely misspelt, and a different one makes another word ("delay",
    # "relay"). It may be missing.
    if letters[0] != wanted[0] and letters != wanted[1:]:
        return False
    if max(len(name), len(other)) >= LONG:
        return True
    # In the shortest names, a replaced letter makes another word ("app", "api").
    return edits == 1 and (len(name) != len(other) or len(name) > SHORT)
