"""Find the private names of other libraries, and of asyncio, that the package uses."""

import ast
import importlib
import inspect
import pkgutil
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import svcrun
from tests.support import ROOT

SRC = ROOT / "src"

# These are documented although their names begin with an underscore.
DOCUMENTED = {
    *("sys._getframe", "sys._current_frames", "os._exit", "_thread"),
    *("_abc_impl", "_asdict", "_fields", "_make", "_replace"),  # of abc and of named tuples
}


_LANGUAGE = {"builtins", "enum", "typing"}


def find_private_names() -> Mapping[str, set[str]]:
    """Return the modules of the package by the private name that they use."""
    found: dict[str, set[str]] = defaultdict(set)
    trees = {
        ".".join(path.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__"): ast.parse(
            path.read_text(encoding="utf-8")
        )
        for path in sorted(SRC.rglob("*.py"))
    }
    declared = {module: set(_declared_names(tree)) for module, tree in trees.items()}
    for module, tree in trees.items():
        own = declared[module].union(*(declared.get(it, ()) for it in _imported_modules(tree)))
        for name in _names_in(tree, own):
            found[name].add(module)
    for info in pkgutil.walk_packages(svcrun.__path__, "svcrun."):
        if info.name.endswith("__main__"):
            continue
        module_object = importlib.import_module(info.name)
        for cls in vars(module_object).values():
            if inspect.isclass(cls) and cls.__module__ == info.name:
                for name in _names_shared_with_bases(cls):
                    found[name].add(info.name)
    return found


def is_private(name: str) -> bool:
    return re.fullmatch(r"_[a-zA-Z]\w*", name) is not None and not name.startswith("_svcrun_")


def _imported_modules(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def _names_in(tree: ast.Module, own: set[str]) -> Iterator[str]:
    """Yield private names that are imported, or accessed on objects other than ``self``.

    :param own: names that classes of this module, or of modules that it imports, declare.
    """
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=receiver, attr=name):
                dotted = ast.unparse(node)
                is_self = ast.unparse(receiver) in {"self", "cls", "super()"}
                if not is_self and name not in own and is_private(name):
                    yield from _unless_documented(dotted, name)
            case (
                ast.Call(func=ast.Name("getattr" | "hasattr" | "setattr"), args=[_, name, *_])
                | ast.Call(func=ast.Name("attrgetter"), args=[name])
            ):
                if isinstance(name, ast.Constant) and name.value not in own:
                    yield from _unless_documented(str(name.value), str(name.value))
            case ast.Import(names=names):
                for one in names:
                    yield from _private_parts(one.name)
            case ast.ImportFrom(module=str(module), names=names):
                for one in names:
                    yield from _private_parts(f"{module}.{one.name}")


def _private_parts(dotted: str) -> Iterator[str]:
    if not dotted.startswith("svcrun."):
        for part in dotted.split("."):
            yield from _unless_documented(part, part)


def _unless_documented(dotted: str, name: str) -> Iterator[str]:
    if is_private(name) and not DOCUMENTED & {dotted, name}:
        yield name


def _declared_names(tree: ast.Module) -> Iterator[str]:
    for cls in (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)):
        for node in ast.walk(cls):
            match node:
                case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                    yield name
                case ast.Attribute(value=ast.Name("self" | "cls"), attr=name, ctx=ast.Store()):
                    yield name
                case ast.AnnAssign(target=ast.Name(name)):
                    yield name
                case ast.Assign(targets=[ast.Name("__slots__")], value=value):
                    yield from (
                        str(it.value) for it in ast.walk(value) if isinstance(it, ast.Constant)
                    )


def _names_shared_with_bases(cls: type[Any]) -> set[str]:
    """Return private names that a class has in common with bases from outside of the package."""
    foreign: set[str] = set()
    for base in cls.__mro__:
        if not base.__module__.startswith("svcrun") and base.__module__ not in _LANGUAGE:
            foreign.update(vars(base), re.findall(r"\bself\.(_\w+)", _source_of(base)))
    used = {*vars(cls), *re.findall(r"(?:\bself|\bsuper\(\))\.(_\w+)", _source_of(cls))}
    return {name for name in used & foreign if is_private(name) and name not in DOCUMENTED}


def _source_of(cls: type[Any]) -> str:
    try:
        return inspect.getsource(cls)
    except (OSError, TypeError):  # written in C, or made by a function
        return ""
