"""Replace a file atomically, again and again."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets

from svcrun.errors import show

__all__ = ("AtomicFile",)

log = logging.getLogger("svcrun.service.profiler")


class AtomicFile:
    """A file that is replaced as a whole. The first of several failures in a row is logged.

    :param service: the service that writes the file, for log messages.
    :param path: the path of the file.
    """

    def __init__(self, service: object, path: str | os.PathLike[str]) -> None:
        self._service = service
        self._path = path
        self._has_failed = False

    def write(self, content: bytes) -> None:
        """Replace the content of the file."""
        try:
            _replace(os.path.realpath(self._path), content)
        except (OSError, ValueError) as error:  # ValueError: a path with a null character
            if not self._has_failed:
                self._has_failed = True
                service = show(self._service)
                log.warning("%s: could not write %s; retrying: %s", service, self._path, error)
            return
        if self._has_failed:
            self._has_failed = False
            log.info("%s: writing %s again", show(self._service), self._path)


def _replace(path: str, content: bytes) -> None:
    """Write a file such that a program that opens it reads the whole old or the whole new one."""
    if os.path.exists(path) and not os.path.isfile(path):
        msg = f"{path} is not a regular file"  # such as a device, which can't be replaced
        raise OSError(msg)
    temporary = f"{path}.{secrets.token_hex(4)}.tmp"
    try:
        with open(temporary, "xb") as file:
            file.write(content)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
