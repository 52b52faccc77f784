"""A file that is replaced atomically on each write."""

import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from svcrun import Service
from svcrun._insight.atomic_file import AtomicFile


class Owner(Service):
    async def start(self) -> None:
        pass


def test_a_reader_finds_one_complete_version(tmp_path: Path) -> None:
    path = tmp_path / "file"
    contents = (b"a" * 100_000, b"b" * 200_000)
    file = AtomicFile(Owner(), path)
    file.write(contents[0])
    is_over = threading.Event()

    def write() -> None:
        for _ in range(100):
            for content in contents:
                file.write(content)
        is_over.set()

    thread = threading.Thread(target=write)
    thread.start()
    while not is_over.is_set():
        assert path.read_bytes() in contents
    thread.join()
    assert list(tmp_path.iterdir()) == [path]


def test_an_unwritable_file_is_logged_once_until_a_write_succeeds(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    path = tmp_path / "absent" / "file"
    file = AtomicFile(Owner(name="owner"), path)
    for _ in range(3):
        file.write(b"")
    (warning,) = caplog.records
    assert warning.levelno == logging.WARNING
    assert "owner" in warning.getMessage()
    assert str(path) in warning.getMessage()

    path.parent.mkdir()
    for _ in range(3):
        file.write(b"content")
    assert path.read_bytes() == b"content"
    assert [record.levelno for record in caplog.records] == [logging.WARNING, logging.INFO]


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_only_a_regular_file_is_replaced(
    make: Callable[[Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "file"
    make(path)
    AtomicFile(Owner(), path).write(b"content")
    assert "not a regular file" in caplog.text
    assert not path.is_file()
    assert list(tmp_path.iterdir()) == [path]


def test_a_symbolic_link_is_kept_and_its_target_written(tmp_path: Path) -> None:
    path, link = tmp_path / "file", tmp_path / "link"
    link.symlink_to(path)
    AtomicFile(Owner(), link).write(b"content")
    assert link.is_symlink()
    assert path.read_bytes() == b"content"


def test_an_impossible_path_is_logged_as_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    AtomicFile(Owner(), "a\0b").write(b"content")
    assert "could not write" in caplog.text


def test_the_mode_of_the_file_follows_the_umask(tmp_path: Path) -> None:
    path, other = tmp_path / "file", tmp_path / "other"
    AtomicFile(Owner(), path).write(b"content")
    other.touch()
    assert path.stat().st_mode == other.stat().st_mode
