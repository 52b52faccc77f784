"""Check quickly whether any installed distribution has an entry point of a group.

Importing :mod:`importlib.metadata` takes longer than all other steps of a small program before its
services start. Reading the metadata of hundreds of distributions takes as long again. Nearly every
program has no plug-in, and needs neither.

True is the safe answer: without need, it costs only the time of the full search.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress

from svcrun._util.hints import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ("may_have",)

_SUFFIXES: Final = (".dist-info", ".egg-info")
_FILE: Final = "entry_points.txt"
# The record at the end of a zip file: signature, numbers of disks and files, size and offset of the
# central directory, length of the comment that follows.
_ZIP_END: Final = b"PK\x05\x06"
_ZIP_END_SIZE: Final = 22
_LONGEST_COMMENT: Final = 0xFFFF
_CHUNK: Final = 1 << 16
_FLAGS: Final = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)


def may_have(group: str) -> bool:
    """Return whether :func:`importlib.metadata.entry_points` may find an entry point of `group`.

    It searches the ``entry_points.txt`` files along ``sys.path`` for the name. It also returns True
    if an archive has such a file, or if another finder of ``sys.meta_path`` finds distributions.
    """
    wanted = group.encode()
    paths: Iterable[object] = dict.fromkeys(sys.path)  # programs add objects of any type
    return _has_foreign_finder() or any(
        _folder_has(path, wanted) for path in paths if isinstance(path, str)
    )


def _has_foreign_finder() -> bool:
    """Return whether a finder other than the search of ``sys.path`` finds distributions."""
    for finder in sys.meta_path:
        if hasattr(finder, "find_distributions"):
            module = getattr(finder, "__module__", None) or type(finder).__module__
            # The finders of the interpreter and of the backport search ``sys.path`` themselves.
            if not module.startswith(("_frozen_importlib", "importlib", "importlib_metadata")):
                return True
    return False


def _folder_has(path: str, wanted: bytes) -> bool:
    is_egg = path.lower().endswith(".egg")
    try:
        with os.scandir(path or ".") as entries:
            found = [entry.name for entry in entries if _may_be_metadata(entry.name, is_egg=is_egg)]
    except NotADirectoryError:
        with suppress(OSError):
            return _archive_has_file(path)
        return False
    except (OSError, ValueError):  # absent, unreadable, or with a NUL in its name
        return False
    folder = path or "."
    return any(wanted in _read(f"{folder}/{name}/{_FILE}") for name in found)


def _may_be_metadata(name: str, *, is_egg: bool) -> bool:
    return name.endswith(_SUFFIXES) or (is_egg and name == "EGG-INFO")


def _read(path: str) -> bytes:
    try:
        descriptor = os.open(path, _FLAGS)
    except OSError:  # most distributions have no such file
        return b""
    try:
        content = chunk = os.read(descriptor, _CHUNK)
        while len(chunk) == _CHUNK:
            chunk = os.read(descriptor, _CHUNK)
            content += chunk
    except OSError:  # it is a folder, for instance
        return b""
    else:
        return content
    finally:
        os.close(descriptor)


def _archive_has_file(path: str) -> bool:
    """Return whether the central directory of a zip file names a file of entry points."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _ZIP_END_SIZE - _LONGEST_COMMENT))
        tail = file.read()
        end = tail.rfind(_ZIP_END)
        if end < 0:
            return False
        length = int.from_bytes(tail[end + 12 : end + 16], "little")
        # Count from the end: the offset in the record is wrong if the file has a prefix such as
        # "#!/usr/bin/python".
        file.seek(max(0, size - len(tail) + end - length))
        return _FILE.encode() in file.read(length)
