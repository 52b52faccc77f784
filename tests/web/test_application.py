"""Laws of an application that is named, or created by a factory."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from svcrun import Service
from svcrun._web.application import check_import_string, is_factory, load

if TYPE_CHECKING:
    from pathlib import Path


class Host(Service):
    app: Any = None

    async def start(self) -> None: ...


class Application:
    """An application: it is called with three arguments."""

    def __call__(self, scope: Any, receive: Any, send: Any) -> None: ...


def make() -> Application:
    return Application()


async def make_later() -> Application:
    return Application()


async def get(app: Any) -> Any:
    return await load(Host(), app, lambda found: is_factory(found, 3))


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a package that can be imported."""
    name = f"hosted{os.urandom(4).hex()}"
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("app = 'at the top'\n")
    (tmp_path / name / "inner.py").write_text("class Space:\n    app = 'inside'\n")
    (tmp_path / name / "needy.py").write_text("import not_installed_at_all\n")
    (tmp_path / name / "needs_own.py").write_text(f"import {name}.absent\n")
    (tmp_path / name / "broken.py").write_text("raise LookupError('on import')\n")
    monkeypatch.syspath_prepend(tmp_path)
    return name


async def test_an_application_is_returned_unchanged() -> None:
    app = Application()
    assert await get(app) is app


@pytest.mark.parametrize("factory", [make, make_later, Application])
async def test_a_factory_is_called(factory: Any) -> None:
    assert isinstance(await get(factory), Application)


async def test_a_name_is_imported(module: str) -> None:
    assert await get(f"{module}:app") == "at the top"
    assert await get(f"{module}.inner:Space.app") == "inside"


async def test_a_named_factory_is_called() -> None:
    assert isinstance(await get(f"{__name__}:make_later"), Application)


async def test_an_absent_module_is_named_with_the_parameter(module: str) -> None:
    for name in ("no_such_module", f"{module}.absent", f"{module}.absent.deep"):
        with pytest.raises(ModuleNotFoundError, match=rf"Host: app='{name}:app'") as caught:
            await get(f"{name}:app")
        assert "absent" in str(caught.value) or "no_such_module" in str(caught.value)


async def test_an_absent_module_that_the_application_imports_is_its_own_error(module: str) -> None:
    with pytest.raises(ModuleNotFoundError, match=r"^No module named 'not_installed_at_all'"):
        await get(f"{module}.needy:app")


async def test_an_error_of_the_module_is_raised_unchanged(module: str) -> None:
    with pytest.raises(LookupError, match="on import"):
        await get(f"{module}.broken:app")


async def test_an_absent_attribute_is_named(module: str) -> None:
    with pytest.raises(ImportError, match=rf"Host: app='{module}:nothing'.* has no 'nothing'"):
        await get(f"{module}:nothing")
    with pytest.raises(ImportError, match=r"has no 'deeper'"):
        await get(f"{module}.inner:Space.deeper")


@pytest.mark.parametrize(
    "app", ["", "module", "module:", ":app", "module:app:more", "a b:c", "module/app"]
)
def test_a_string_that_is_no_import_string_is_refused(app: str) -> None:
    with pytest.raises(ValueError, match=r"Host: app must be .*package\.module:name"):
        check_import_string(Host(app=app))


@pytest.mark.parametrize("app", [5, [], b"module:app"])
def test_an_object_that_can_not_be_called_is_refused(app: Any) -> None:
    with pytest.raises(TypeError, match="Host: app must be"):
        check_import_string(Host(app=app))


@pytest.mark.parametrize("app", [None, "module:app", "package.module:Class.app", make])
def test_import_strings_and_callables_are_accepted(app: Any) -> None:
    check_import_string(Host(app=app))


def both_ways(*arguments: Any) -> None:
    """Can be called as a factory and as an application."""


def needs_one(argument: Any) -> None:
    """Is neither."""


@pytest.mark.parametrize(
    ("app", "expected"),
    [
        (make, True),
        (Application, True),
        (Application(), False),
        (both_ways, False),
        (needs_one, False),
        (5, False),
        (lambda scope=None: None, True),
        (lambda scope=None, receive=None, send=None: None, False),
        (type, False),  # has no signature
    ],
)
def test_a_callable_that_accepts_three_arguments_is_an_application(
    app: Any, *, expected: bool
) -> None:
    assert is_factory(app, 3) is expected
