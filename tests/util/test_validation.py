from __future__ import annotations

import sys
from fractions import Fraction
from math import inf, nan
from typing import Any

import pytest
from hypothesis import given, strategies as st

from svcrun._util.validation import function, instance_of, number, one_of, optional, switch
from svcrun.errors import ParameterError, ParameterTypeError


def passes(value: Any, **bounds: Any) -> bool:
    try:
        number(**bounds)("Kettle", "volume", value)
    except ParameterError:
        return False
    return True


@given(st.floats() | st.integers(), st.floats(-9, 9), st.floats(-9, 9), st.floats(-9, 9))
def test_an_inclusive_bound_passes_and_an_exclusive_one_does_not(
    value: float, low: float, above: float, high: float
) -> None:
    assert passes(value, low=low) == (low <= value < inf)
    assert passes(value, above=above) == (above < value < inf)
    assert passes(value, low=low, above=above, high=high) == (
        low <= value <= high and above < value
    )


@pytest.mark.parametrize("edge", [0, 0.0, -0.0, 1, 1.5])
def test_an_edge_belongs_to_the_range_unless_the_value_has_to_be_above_it(edge: float) -> None:
    assert passes(edge, low=edge, high=edge)
    assert not passes(edge, above=edge)


def test_infinity_passes_only_where_it_is_the_greatest_value() -> None:
    assert passes(inf, high=inf)
    assert not passes(inf)
    assert not passes(inf, high=sys.float_info.max)
    assert not passes(-inf, high=inf)


@pytest.mark.parametrize("bounds", [{}, {"high": inf}, {"low": -inf, "above": -inf}])
def test_nan_never_passes(bounds: dict[str, float]) -> None:
    assert not passes(nan, **bounds)


def test_an_integer_beyond_all_floats_passes_as_a_count_but_not_as_a_measure() -> None:
    assert passes(10**400, low=1, whole=True)
    assert not passes(10**400, low=1)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("value", [True, False, None, "5", 1j, Fraction(1), [1]])
def test_a_value_that_is_no_number_is_of_a_wrong_type(value: object, whole: bool) -> None:
    with pytest.raises(ParameterTypeError):
        number(whole=whole)("Kettle", "volume", value)


@pytest.mark.parametrize("value", [1.0, 0.5, inf, nan])
def test_a_float_is_of_a_wrong_type_where_an_integer_is_asked_for(value: float) -> None:
    with pytest.raises(ParameterTypeError):
        number(whole=True)("Kettle", "volume", value)


@pytest.mark.parametrize(
    ("bounds", "value", "accepted"),
    [
        ({"low": 0}, -1, "at least 0"),
        ({"above": 0}, 0, "greater than 0"),
        ({"above": 0, "high": 9}, 10, "at most 9"),
        ({"low": 0, "high": 65_535, "whole": True}, 70_000, "between 0 and 65535"),
        ({"low": 0}, inf, "finite"),
        ({"low": 0, "high": inf}, nan, "finite"),
        ({"low": 0}, "5", "a number"),
        ({"low": 0, "unit": "litres"}, "5", "a number of litres"),
        ({"whole": True, "unit": "cups"}, 0.5, "a whole number of cups"),
    ],
)
def test_the_error_for_a_number_names_owner_parameter_value_and_the_accepted_values(
    bounds: dict[str, Any], value: object, accepted: str
) -> None:
    with pytest.raises((ParameterError, ParameterTypeError)) as caught:
        number(**bounds)("Kettle", "volume", value)
    assert str(caught.value) == f"Kettle: volume must be {accepted}, not {value!r}"


def test_an_optional_value_may_be_none_and_the_error_explains_none() -> None:
    check = optional(number(low=0), "no limit")
    assert check("Kettle", "volume", None) is None
    assert check("Kettle", "volume", 1) == 1
    with pytest.raises(ParameterError, match=r"at least 0, or None for no limit, not -1"):
        check("Kettle", "volume", -1)
    with pytest.raises(ParameterTypeError, match=r"a number, or None, not 'much'"):
        optional(number())("Kettle", "volume", "much")


@pytest.mark.parametrize(
    ("check", "value", "text"),
    [
        (one_of("on", "off"), "auto", "Kettle: mode must be 'on' or 'off', not 'auto'"),
        (one_of("on", "off"), ["on"], "Kettle: mode must be 'on' or 'off', not ['on']"),
        (instance_of(str, "a name"), 3, "Kettle: mode must be a name, not 3"),
        (switch, 1, "Kettle: mode must be True or False, not 1"),
        (function, 1, "Kettle: mode must be a function, not 1"),
    ],
)
def test_a_check_refuses_other_values_and_says_what_it_accepts(
    check: Any, value: object, text: str
) -> None:
    with pytest.raises((ParameterError, ParameterTypeError)) as caught:
        check("Kettle", "mode", value)
    assert str(caught.value) == text


@pytest.mark.parametrize(
    ("check", "value"), [(one_of("on", "off"), "on"), (switch, False), (function, print)]
)
def test_a_check_returns_the_value_that_it_accepts(check: Any, value: object) -> None:
    assert check("Kettle", "mode", value) is value


def test_the_error_calls_an_object_by_its_class() -> None:
    class Kettle: ...

    with pytest.raises(ParameterError, match=r"Kettle: volume must be at least 1, not 0$"):
        number(low=1)(Kettle(), "volume", 0)
