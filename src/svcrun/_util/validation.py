"""Checks of parameters: each is called with the owner, the name and the value of one.

A check returns the value to keep, and raises an error for a value that is not accepted::

    check = number(low=0, unit="seconds")
    check("Echo", "drain_timeout", -1)  # ParameterError
"""

from __future__ import annotations

import sys
from math import inf

import svcrun._util.hints as typing
from svcrun._util.hints import TYPE_CHECKING
from svcrun.errors import ParameterError, ParameterTypeError

if TYPE_CHECKING:
    from collections.abc import Callable

    Check: typing.TypeAlias = Callable[[object, str, typing.Any], typing.Any]

__all__ = ("function", "instance_of", "number", "one_of", "optional", "switch")


def number(
    *,
    low: float = -inf,
    above: float = -inf,
    high: float | None = None,
    whole: bool = False,
    unit: str = "",
) -> Check:
    """Return a check for a number; it never accepts True, False or NaN.

    :param low: the least value.
    :param above: a number that the value has to be greater than.
    :param high: the greatest value; by default, any finite one. ``math.inf`` accepts infinity.
    :param whole: whether the value has to be an integer.
    :param unit: the unit in the plural, for messages.

    >>> check = number(above=0, unit="litres")
    >>> check("Kettle", "volume", 1.7)
    1.7
    >>> check("Kettle", "volume", 0)
    Traceback (most recent call last):
    svcrun.errors.ParameterError: Kettle: volume must be greater than 0, not 0
    >>> check("Kettle", "volume", "a lot")
    Traceback (most recent call last):
    svcrun.errors.ParameterTypeError: Kettle: volume must be a number of litres, not 'a lot'
    """
    # An integer may be larger than any float.
    most = high if high is not None else inf if whole else sys.float_info.max
    kind = f"{'a whole number' if whole else 'a number'}{f' of {unit}' if unit else ''}"
    if above > -inf:
        limits = f"greater than {above:g}"
    elif high is not None and high < inf:
        limits = f"between {low:g} and {high:.10g}"
    else:
        limits = f"at least {low:g}"

    def check(owner: object, name: str, value: typing.Any) -> typing.Any:
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
            raise ParameterTypeError(owner, name, value, kind)
        if not (low <= value <= most and above < value):  # NaN fails any comparison
            accepted = limits
            if value != value or (high is None and value > most):  # noqa: PLR0124 - NaN
                accepted = "finite"
            elif value > most and above > -inf:
                accepted = f"at most {most:.10g}"
            raise ParameterError(owner, name, value, accepted)
        return value

    return check


def optional(check: Check, meaning: str = "") -> Check:
    """Return a check for a value that `check` accepts, or None.

    :param meaning: what None stands for, for messages.

    >>> optional(number(low=0), "no limit")("Kettle", "volume", -1)
    Traceback (most recent call last):
    svcrun.errors.ParameterError: Kettle: volume must be at least 0, or None for no limit, not -1
    """

    def check_optional(owner: object, name: str, value: typing.Any) -> typing.Any:
        if value is None:
            return None
        try:
            return check(owner, name, value)
        except (ParameterError, ParameterTypeError) as error:
            none = f"None for {meaning}" if meaning else "None"
            raise type(error)(owner, name, value, f"{error.accepted}, or {none}") from None

    return check_optional


def one_of(*choices: str) -> Check:
    """Return a check for one of several strings.

    >>> one_of("skip", "queue", "cancel")("Cleaner", "overlap", "wait")
    Traceback (most recent call last):
    svcrun.errors.ParameterError: Cleaner: overlap must be 'skip', 'queue' or 'cancel', not 'wait'
    """
    *others, last = map(repr, choices)
    accepted = f"{', '.join(others)} or {last}"

    def check(owner: object, name: str, value: typing.Any) -> typing.Any:
        if not isinstance(value, str) or value not in choices:
            raise ParameterError(owner, name, value, accepted)
        return value

    return check


def instance_of(kinds: typing.Any, accepted: str) -> Check:
    """Return a check for an instance of a class, or of one of several.

    :param accepted: the noun phrase for it, for messages.

    >>> instance_of(str, "a name")("Kettle", "name", 3)
    Traceback (most recent call last):
    svcrun.errors.ParameterTypeError: Kettle: name must be a name, not 3
    """

    def check(owner: object, name: str, value: typing.Any) -> typing.Any:
        if not isinstance(value, kinds):
            raise ParameterTypeError(owner, name, value, accepted)
        return value

    return check


switch = instance_of(bool, "True or False")
"""The check for True or False."""


def function(owner: object, name: str, value: typing.Any) -> typing.Any:
    """Check whether `value` can be called."""
    if not callable(value):
        raise ParameterTypeError(owner, name, value, "a function")
    return value
