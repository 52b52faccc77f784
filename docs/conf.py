"""Configuration of Sphinx; ``tox run -e docs`` builds the manual."""

import builtins
import re
from typing import Any

from svcrun._health.metrics import METRICS
from svcrun.version import __version__

project = "svcrun"
author = "svcrun contributors"
copyright = author
release = __version__
version = release.rpartition(".")[0]

extensions = ["sphinx.ext.autodoc", "sphinx.ext.viewcode", "sphinx_copybutton"]
copybutton_exclude = ".linenos, .gp, .go"  # prompts and output of console blocks
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"svcrun {release}"
html_static_path = ["_static"]
html_css_files = ["pictures.css"]

default_role = "literal"  # parameters, in docstrings
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
python_use_unqualified_type_names = True

# Every name of svcrun must have a target. Names of other projects have none, because looking them
# up would make the build depend on their servers.
nitpick_ignore_regex = [
    ("py:.*", r"(?!svcrun\.)[A-Za-z_]+\..+"),
    ("py:class", r"(svcrun\..+\.)?[PST]"),  # type variables
    ("py:class", "AbstractEventLoop|tzinfo"),  # of asyncio and datetime
    ("py:class", "CallbackType|ExceptionsType|Misfire|Option|Overlap|Receiver|Strategy"),  # aliases
    ("py:class", "Check|Dependency|Filter|RunnerKwargsType|Socket|SortKey"),
    ("py:class", r"svcrun\.errors\._\w+"),  # a private base
    ("py:class", "Clock"),  # what only tests give
]
nitpick_ignore = [
    (role, name) for role in ("py:class", "py:exc", "py:obj", "py:data") for name in dir(builtins)
]


def find_by_last_name(app: Any, env: Any, node: Any, contents: Any) -> Any:
    """Resolve a bare name, or a name by another module that exports it."""
    if node.get("refdomain") != "py":
        return None
    python = env.domains["py"]
    name = node["reftarget"].rpartition(".")[2]
    found = [
        full
        for full, entry in python.objects.items()
        if full.rpartition(".")[2] == name and not entry.aliased
    ]
    if len(found) != 1:
        return None
    role, document = node["reftype"], node["refdoc"]
    return python.resolve_xref(env, document, app.builder, role, found[0], node, contents)


def leave_out_computed(*event: Any) -> tuple[str | None, Any]:
    """Leave out the parameters without a default value, such as ``loop``.

    Autodoc adds the annotations below ``if TYPE_CHECKING`` to a class. At run time, these names are
    descriptors, which compute their values.
    """
    *_, signature, returns = event
    return signature and re.sub(r", \w+=<[\w.]+\.overridable object>", "", signature), returns


def insert_metrics(_: Any, document: str, source: list[str]) -> None:
    """Insert the table of all metrics."""
    if document == "reference/health":
        rows = [("Name", "Kind", "Labels", "Value")]
        for name, metric in METRICS.items():
            labels = ", ".join(f"``{label}``" for label in metric.labels)
            rows.append((f"``svcrun_{name}``", metric.kind, labels, metric.text))
        lines = [".. list-table::", "    :header-rows: 1", "    :widths: 40 12 15 33", ""]
        for row in rows:
            lines += [f"    {'  -' if n else '* -'} {cell}" for n, cell in enumerate(row)]
        source[0] = source[0].replace(".. metrics", "\n".join(lines))


def setup(app: Any) -> None:
    """Register the functions above."""
    app.connect("source-read", insert_metrics)
    app.connect("autodoc-process-signature", leave_out_computed)
    app.connect("missing-reference", find_by_last_name)
