"""Configuration of Sphinx; ``tox run -e docs`` builds the manual."""

import builtins

from svcrun.version import __version__

project = "svcrun"
author = "svcrun contributors"
copyright = author
release = __version__
version = release.rpartition(".")[0]

extensions = ["sphinx.ext.autodoc", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"svcrun {release}"

default_role = "any"
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
python_use_unqualified_type_names = True

# Every name of svcrun must lead somewhere. Those of other projects do not: looking them up would
# make the build depend on other people's servers.
nitpick_ignore_regex = [("py:.*", r"(?!svcrun\.)[A-Za-z_]+\..+")]
nitpick_ignore = [
    (role, name) for role in ("py:class", "py:exc", "py:obj", "py:data") for name in dir(builtins)
]
