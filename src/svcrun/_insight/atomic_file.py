"""A file that is replaced as a whole, again and again."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
from typing import TYPE_CHECKING

from svcrun.errors import show

if TYPE_CHECKING:
    from svcrun.service.base import Service

__all__ = ("Dump",)

log = logging.getLogger("svcrun.service.profiler")


class Dump:
    """A file to be replaced; that it can't be written is logged once, until it can be again.

    :param service: whose file it is.
    :param path: where it is.
    """

    def __init__(self, service: Service, path: str | os.PathLike[str]) -> None:
        self._service = service
        self._path = path
        self._has_failed = False

    def write(self, content: bytes) -> None:
        """Replace what the file contains."""
        try:
            _replace(os.path.realpath(self._path), content)
        except (OSError, ValueError) as error:  # ValueError: a path that no system can have
            if not self._has_failed:
                self._has_failed = True
                service = show(self._service)
                log.warning("%s can't write %s, and tries again: %s", service, self._path, error)
            return
        if self._has_failed:
            self._has_failed = False
            log.info("%s can write %s again", show(self._service), self._path)


def _replace(path: str, content: bytes) -> None:
    """Write a file in such a way that who opens it finds all of the old or all of the new one."""
    if os.path.exists(path) and not os.path.isfile(path):
        msg = f"{path} is there, and is no regular file"  # such as a device: nothing to replace
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
