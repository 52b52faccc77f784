"""The arguments of a spawned process: large ones are passed in a file."""

from __future__ import annotations

import os
import pickle
import tempfile
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ("Arguments",)

_PIPE_SPACE: Final = 1 << 15
"""The size in bytes of arguments that fit into a pipe, beside the data of multiprocessing."""


class Arguments:
    """Values for a process that is being spawned, in which they are a tuple.

    ``Process.start()`` writes the pickled arguments to a pipe, and blocks until the process has
    read them, which is after the import of the main module. Until then, the process id would be
    unknown, so the process could be neither stopped nor guarded.
    """

    def __init__(self, *values: object) -> None:
        self._values = values
        self._file: Connection | None = None

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any]]:
        data = ForkingPickler.dumps(self._values)
        if len(data) <= _PIPE_SPACE:
            return pickle.loads, (bytes(data),)
        self._file = Connection(_make_file(), writable=False)
        while data:
            data = data[os.write(self._file.fileno(), data) :]
        os.lseek(self._file.fileno(), 0, os.SEEK_SET)
        return _load, (self._file,)

    def close(self) -> None:
        """Close the file, after the start of the process."""
        if self._file is not None:
            self._file.close()


def _make_file() -> int:
    with suppress(AttributeError, OSError):  # no such system call
        return os.memfd_create("svcrun-arguments")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _load(file: Connection) -> Any:
    with open(file.fileno(), "rb", closefd=False) as stream, file:
        return pickle.load(stream)  # noqa: S301 - the parent has written it
