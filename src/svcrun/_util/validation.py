"""The check of every parameter that is a number."""

from __future__ import annotations

import sys
from math import inf

from svcrun._util.hints import Any
from svcrun.errors import ParameterError, ParameterTypeError

__all__ = ("check_number",)


def check_number(
    owner: object,
    name: str,
    value: Any,
    accepted: str,
    *,
    low: float = -inf,
    above: float = -inf,
    high: float | None = None,
    whole: bool = False,
) -> None:
    """Refuse a value that is no number, or none that a parameter can have.

    True, False and NaN never pass.

    :param owner: what an error says has the parameter.
    :param name: the parameter.
    :param accepted: what would be right, for the error.
    :param low: the least value.
    :param above: what it has to be greater than.
    :param high: the greatest value; by default, any that is finite. ``math.inf`` lets infinity
        pass as well.
    :param whole: whether it has to be an integer.

    :raises ParameterTypeError: if it is of another type.
    :raises ParameterError: if it is out of its range.

    >>> check_number("Kettle", "volume", 1.7, "a number of litres above 0", above=0)
    >>> check_number("Kettle", "volume", 0, "a number of litres above 0", above=0)
    Traceback (most recent call last):
    svcrun.errors.ParameterError: Kettle: volume=0 is not usable; give a number of litres above 0
    """
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        raise ParameterTypeError(owner, name, value, accepted)
    if high is None:
        high = inf if whole else sys.float_info.max  # an integer may be larger than any float
    if not (low <= value <= high and above < value):  # NaN fails any comparison
        raise ParameterError(owner, name, value, accepted)
