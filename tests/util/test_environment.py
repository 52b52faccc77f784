import pytest

from svcrun._util.environment import Environment


def variable(monkeypatch: pytest.MonkeyPatch, value: str | None) -> Environment:
    if value is None:
        monkeypatch.delenv("SVCRUN_TEST", raising=False)
    else:
        monkeypatch.setenv("SVCRUN_TEST", value)
    return Environment()


@pytest.mark.parametrize("value", [None, "", "  "])
def test_a_variable_that_is_absent_or_empty_reads_as_none(
    value: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = variable(monkeypatch, value)
    assert found.text("TEST") is None
    assert found.number("TEST") is None
    assert found.whole_number("TEST") is None
    assert found.switch("TEST") is None


def test_blanks_around_a_value_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    assert variable(monkeypatch, " text ").text("TEST") == "text"
    assert variable(monkeypatch, " 5 ").whole_number("TEST") == 5


@pytest.mark.parametrize("value", ["1", "on", "ON", "True", "yes", "enable", "enabled"])
def test_a_switch_is_on_with_any_of_these_words(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert variable(monkeypatch, value).switch("TEST") is True


@pytest.mark.parametrize("value", ["0", "off", "Off", "false", "NO", "disable", "disabled"])
def test_a_switch_is_off_with_any_of_these_words(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert variable(monkeypatch, value).switch("TEST") is False


def test_a_number_is_read_from_its_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    assert variable(monkeypatch, "1.5").number("TEST") == 1.5
    assert variable(monkeypatch, "15").number("TEST") == 15.0
    assert variable(monkeypatch, "-15").whole_number("TEST") == -15


@pytest.mark.parametrize(
    ("read", "value", "accepted"),
    [
        (lambda found: found.switch("TEST"), "maybe", "0, off, no or false"),
        (lambda found: found.number("TEST"), "many", "number"),
        (lambda found: found.whole_number("TEST"), "1.5", "a whole number"),
    ],
    ids=["switch", "number", "whole number"],
)
def test_a_value_of_a_wrong_type_is_refused_with_the_accepted_values(
    read: object, value: str, accepted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert callable(read)
    with pytest.raises(ValueError, match=f"SVCRUN_TEST must be .*{accepted}, not '{value}'"):
        read(variable(monkeypatch, value))


def test_variables_are_read_when_the_object_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    before = variable(monkeypatch, "before")
    monkeypatch.setenv("SVCRUN_TEST", "after")
    assert before.text("TEST") == "before"
    assert Environment().text("TEST") == "after"
