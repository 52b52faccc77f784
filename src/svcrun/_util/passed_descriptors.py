"""The descriptors that the parent of the process has passed, as of ``sd_listen_fds(3)``.

systemd, or another parent, passes descriptors from 3 on, and describes them in variables of the
environment.

Invariant: the descriptors stay open as long as the process lives. A server listens on a duplicate,
so connections that arrive after its stop wait for its next start.
"""

from __future__ import annotations

import logging
import os
import stat
import sys
from contextlib import suppress

from svcrun._util.hints import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import socket
    from weakref import ref

__all__ = (
    "Descriptor",
    "is_spawned",
    "mark_as_used",
    "passed_descriptors",
    "reason_for_none",
    "take_passed_descriptors",
    "warn_of_unused_descriptors",
)

log = logging.getLogger("svcrun.net")

VARIABLES: Final = ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "LISTEN_PIDFDID")
"""The variables by which systemd describes the descriptors to a process."""

_FIRST: Final = 3
# A number above this is garbage. Each descriptor costs a few system calls.
_MAX: Final = 1 << 16

_FILES: Final = {
    stat.S_IFIFO: "a fifo",
    stat.S_IFREG: "a file",
    stat.S_IFDIR: "a directory",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
    stat.S_IFSOCK: "a socket",
}


class Descriptor:
    """A descriptor that the parent has passed.

    :param number: the number of the descriptor.
    :param name: the name in ``LISTEN_FDNAMES``.
    """

    def __init__(self, number: int, name: str) -> None:
        self.number = number
        self.name = name
        self.is_used = False
        """Whether a server has listened on it."""
        self.duplicate: ref[socket.socket] | None = None
        """The socket of the server that listens on it now, or did last."""
        self.user = ""
        """How messages name that server."""
        # A child process that inherited it would keep the address in use.
        with suppress(OSError):
            os.set_inheritable(number, False)
        self._identity = _identity(number)

    def is_same(self, number: int) -> bool:
        """Return whether a descriptor is open for the same file, as a duplicate is."""
        return self._identity is not None and _identity(number) == self._identity

    def kind(self) -> str:
        """Return what kind of file the descriptor is open for.

        The program may have closed the descriptor, and its number may be that of another file now.
        """
        if not self.is_same(self.number):
            return "a closed descriptor"
        return _FILES.get(stat.S_IFMT(os.fstat(self.number).st_mode), "an unknown kind of file")


def _identity(number: int) -> tuple[int, int] | None:
    try:
        found = os.fstat(number)
    except OSError:
        return None
    return found.st_dev, found.st_ino


class _Passed:
    """The descriptors of the process with the id `pid`; a forked child has none."""

    pid = 0
    descriptors: tuple[Descriptor, ...] = ()
    reason = ""


def take_passed_descriptors() -> None:
    """Read the variables, and remove them from the environment of future child processes.

    Only the first call finds them. The descriptors are made close-on-exec.
    """
    if VARIABLES[0] not in os.environ and VARIABLES[1] not in os.environ:
        return
    count, pid, names, _ = (os.environ.pop(name, "") for name in VARIABLES)
    if pid != str(os.getpid()):
        _Passed.reason = (
            f"LISTEN_PID={pid} is another process; start the program by exec"
            if pid
            else "LISTEN_PID is not set"
        )
        return
    if not (count.isascii() and count.isdigit() and int(count[:9]) <= _MAX):
        _Passed.reason = f"LISTEN_FDS={count!r} is not a number of descriptors"
        log.warning("ignoring the descriptors passed to this process: %s", _Passed.reason)
        return
    known = names.split(":") if names else []
    if known and len(known) != int(count):
        log.warning("LISTEN_FDNAMES has %d names for %s descriptors", len(known), count)
    known += ["unknown"] * (int(count) - len(known))  # the name that sd_listen_fds() gives
    _Passed.pid = os.getpid()
    _Passed.descriptors = tuple(
        Descriptor(_FIRST + index, known[index]) for index in range(int(count))
    )


def passed_descriptors() -> tuple[Descriptor, ...]:
    """Return the descriptors passed to this process, in their order."""
    take_passed_descriptors()
    return _Passed.descriptors if _Passed.pid == os.getpid() else ()


def reason_for_none() -> str:
    """Return why variables that were found do not count; an empty string if there were none."""
    return _Passed.reason


def mark_as_used(number: int) -> None:
    """Record that a server uses this descriptor, if it or a duplicate of it was passed."""
    for descriptor in passed_descriptors():
        if descriptor.is_same(number):
            descriptor.is_used = True


def warn_of_unused_descriptors() -> None:
    """Warn once of each descriptor that no server has listened on."""
    for index, descriptor in enumerate(passed_descriptors()):
        if not descriptor.is_used and descriptor.is_same(descriptor.number):  # it is open
            descriptor.is_used = True
            log.warning(
                "no service uses the passed descriptor %d, %r (%s); use it by sock='fd:%s', or "
                "remove it from the unit",
                descriptor.number,
                descriptor.name,
                descriptor.kind(),
                index if descriptor.name == "unknown" else descriptor.name,
            )


def is_spawned() -> bool:
    """Return whether multiprocessing has started this process."""
    process = sys.modules.get("multiprocessing.process")
    # While the main module is imported there, the process has no parent yet, but has its name.
    return process is not None and (
        process.parent_process() is not None or process.current_process().name != "MainProcess"
    )
