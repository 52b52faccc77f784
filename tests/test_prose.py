"""The prose of the project reads plainly: subject, verb, object."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import ROOT

PYTHON = [
    path
    for folder in ("src", "tests", "examples", "benchmarks")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if path != Path(__file__)
]
PAGES = [*sorted(ROOT.glob("*.rst")), *sorted((ROOT / "docs").rglob("*.rst"))]

NOUN_CLAUSE = re.compile(r"(?:^|(?<=[.:!?] ))(?:What|Who|Whoever|Whatever)\b[^.?!]*(?:[.!]|$)")
VERBS = ("Tell", "Have", "Let ", "Take note")


def find_documented(tree: ast.Module) -> Iterator[str]:
    """Return the docstrings in a module, and the strings that document attributes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            value = node.value.value
            if isinstance(value, str):
                yield value


def read_prose(path: Path) -> list[str]:
    """Return the docstrings and the comments of a module, or the paragraphs of a page."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".rst":
        return re.split(r"\n\s*\n", text)
    comments: list[str] = []
    last = -1
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            words = token.string.lstrip("# ")
            if token.start[0] == last + 1 and comments:
                comments[-1] += " " + words
            else:
                comments.append(words)
            last = token.start[0]
    return [*find_documented(ast.parse(text)), *comments]


@pytest.mark.parametrize("path", [*PYTHON, *PAGES], ids=lambda path: str(path.relative_to(ROOT)))
def test_the_prose_of_a_file_has_no_vague_person_and_no_noun_clause(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.findall(r"\b(?:some|no)body\b.*", text, re.IGNORECASE)
    for prose in read_prose(path):
        for paragraph in re.split(r"\n\s*\n", prose):
            assert not NOUN_CLAUSE.findall(" ".join(paragraph.split())), paragraph


@pytest.mark.parametrize("path", PYTHON, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_docstring_opens_with_a_usual_verb(path: Path) -> None:
    opened = list(find_documented(ast.parse(path.read_text(encoding="utf-8"))))
    assert not [text for text in opened if text.lstrip().startswith(VERBS)]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_lines_of_prose_in_the_manual_fit_a_screen(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert not [line for line in lines if len(line) > 100 and line[0] != " "]
