"""Disks of a test's own which stop taking data, and take it again. Root mounts them; without that
right, or the tools, a test is skipped."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


class Small:
    """A tmpfs that is full after a few bytes, and can be made larger."""

    says = "No space left on device"

    def __init__(self, folder: Path, size: str) -> None:
        self.folder = folder
        folder.mkdir()
        mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder))

    def spoil(self) -> None:
        fill_up(self.folder / "filler")

    def mend(self) -> None:
        mount("-o", "remount,size=256m", str(self.folder))

    def close(self) -> None:
        subprocess.run(["umount", "-l", str(self.folder)], check=True)


class OnImage:
    """A file system in a file."""

    def __init__(self, folder: Path, program: str) -> None:
        self.folder = folder
        self._image = make_image(folder, program, "256M")
        mount("-o", "loop", str(self._image), str(folder))

    def close(self) -> None:
        subprocess.run(["umount", "-l", str(self.folder)], check=True)
        self._image.unlink()


class WithQuota(OnImage):
    """A btrfs that would have room for more than its quota lets anyone write, root included."""

    says = "Disk quota exceeded"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "mkfs.btrfs")
        self._run("quota", "enable", str(folder))

    def spoil(self) -> None:
        os.sync()  # what is used is counted then
        used = sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())
        self._run("qgroup", "limit", str(used + (64 << 10)), str(self.folder))
        fill_up(self.folder / "filler")

    def mend(self) -> None:
        self._run("qgroup", "limit", "none", str(self.folder))

    @staticmethod
    def _run(*arguments: str) -> None:
        subprocess.run(["btrfs", *arguments], check=True, capture_output=True)


class Failing(OnImage):
    """An ext4 that has met an error and lets itself be read only, until it was checked."""

    says = "Read-only file system"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "mkfs.ext4")

    def spoil(self) -> None:
        os.sync()  # the test's own files; of the run's, what it did not flush is lost from here on
        mount("-o", "remount,abort", str(self.folder))

    def mend(self) -> None:
        subprocess.run(["umount", str(self.folder)], check=True)
        checked = subprocess.run(["e2fsck", "-fy", str(self._image)], capture_output=True)
        assert checked.returncode in (0, 1), checked.stdout.decode()
        mount("-o", "loop", str(self._image), str(self.folder))


Disk = Small | WithQuota | Failing


def mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot mount here: {done.stderr.strip()}")


def make_image(folder: Path, program: str, size: str) -> Path:
    if not shutil.which(program):
        pytest.skip(f"{program} is not installed")
    folder.mkdir()
    image = folder.with_suffix(".img")
    subprocess.run(["truncate", "-s", size, str(image)], check=True)
    subprocess.run([program, "-q", str(image)], check=True, capture_output=True)
    return image


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Small]:
    disk = Small(folder, size)
    try:
        yield disk
    finally:
        disk.close()


def fill_up(file: Path) -> None:
    """Until the disk has no room for another block."""
    with pytest.raises(OSError), open(file, "wb", buffering=0) as filler:
        while True:
            filler.write(bytes(4096))
