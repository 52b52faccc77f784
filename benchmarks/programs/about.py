"""Return the version of the interpreter, and those of the installed libraries."""

import importlib.metadata
import importlib.util
import platform

from benchmarks.programs.protocol import answer, run


def main(libraries: list[str]) -> None:
    found = {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "libraries": {
            name: _version(name) for name in libraries if importlib.util.find_spec(name) is not None
        },
    }
    answer(found)


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


if __name__ == "__main__":
    run(main)
