"""The files of Unix sockets: how a server replaces a stale one, and removes its own."""

from __future__ import annotations

import errno
import logging
import os
import socket
import stat
from typing import NamedTuple

__all__ = ("SocketFile", "bind_path")

log = logging.getLogger("svcrun.net")


class SocketFile(NamedTuple):
    """The file of a bound Unix socket. Device and inode tell it from a later file at its path."""

    path: str
    device: int
    inode: int

    def remove(self, owner: str) -> None:
        """Remove the file, unless another file has replaced it.

        Race: call this before the socket is closed. Until then, no other file can have its inode.

        :param owner: how a log message names the server.
        """
        try:
            found = os.lstat(self.path)
            if (found.st_dev, found.st_ino) == (self.device, self.inode):
                os.unlink(self.path)
        except FileNotFoundError:
            pass
        except OSError as error:
            log.warning("%s: could not remove the file of its Unix socket: %s", owner, error)


def bind_path(sock: socket.socket, path: str) -> SocketFile:
    """Bind `sock` to `path`, and replace a file that no socket is bound to any more.

    :raises OSError: ``EADDRINUSE`` if the file is not such a file.
    """
    try:
        sock.bind(path)
    except OSError as error:
        if error.errno != errno.EADDRINUSE or not _is_stale(path, sock.type):
            raise
        os.unlink(path)
        sock.bind(path)
    created = os.lstat(path)
    return SocketFile(path, created.st_dev, created.st_ino)


def _is_stale(path: str, kind: int) -> bool:
    """Return whether `path` is the file of a closed socket, and therefore safe to remove."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return False
        with socket.socket(socket.AF_UNIX, kind) as probe:
            probe.setblocking(False)
            probe.connect(path)
    except ConnectionRefusedError:
        return True
    except OSError:
        pass  # a full backlog, another type of socket, no permission: the socket may be open
    return False
