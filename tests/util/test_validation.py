from __future__ import annotations

import sys
from fractions import Fraction
from math import inf, nan
from typing import Any

import pytest
from hypothesis import given, strategies as st

from svcrun._util.validation import check_number
from svcrun.errors import ParameterError, ParameterTypeError


def passes(value: Any, **bounds: Any) -> bool:
    try:
        check_number("Kettle", "volume", value, "another", **bounds)
    except ParameterError:
        return False
    return True


@given(st.floats() | st.integers(), st.floats(-9, 9), st.floats(-9, 9), st.floats(-9, 9))
def test_the_least_and_the_greatest_value_pass_and_that_to_be_above_does_not(
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
def test_what_is_no_number_is_of_a_wrong_type(value: object, whole: bool) -> None:
    with pytest.raises(ParameterTypeError):
        check_number("Kettle", "volume", value, "another", whole=whole)


@pytest.mark.parametrize("value", [1.0, 0.5, inf, nan])
def test_a_float_is_of_a_wrong_type_where_an_integer_is_asked_for(value: float) -> None:
    with pytest.raises(ParameterTypeError):
        check_number("Kettle", "volume", value, "another", whole=True)


@pytest.mark.parametrize(("value", "kind"), [(-1, ParameterError), ("5", ParameterTypeError)])
def test_the_error_tells_owner_name_value_and_what_is_accepted(
    value: object, kind: type[Exception]
) -> None:
    with pytest.raises(kind) as caught:
        check_number("Kettle", "volume", value, "litres, 0 or more", low=0)
    assert str(caught.value) == f"Kettle: volume={value!r} is not usable; give litres, 0 or more"
