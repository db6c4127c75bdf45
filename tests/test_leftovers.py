"""Shared memory whose maker was killed is removed; that of the living is not."""

import subprocess
import sys
from pathlib import Path

from runs import ROOT

from rollout.leftovers import WEIGHTS, remove_weights

MAKER = """
import os, sys, tempfile
from rollout.leftovers import WEIGHTS, lock
fd, path = tempfile.mkstemp(prefix=WEIGHTS, dir=sys.argv[1])
lock(fd)
os.posix_fallocate(fd, 0, 4096)
print("made", flush=True)
sys.stdin.read()
"""


def test_only_what_nobody_holds_is_removed(tmp_path: Path):
    makers = [
        subprocess.Popen(
            [sys.executable, "-c", MAKER, str(tmp_path)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for _ in range(2)
    ]
    try:
        for maker in makers:
            assert maker.stdout is not None and maker.stdout.readline() == b"made\n"
        (tmp_path / f"{WEIGHTS}new").touch()
        (tmp_path / "other").write_text("x")
        remove_weights(tmp_path)
        assert len(list(tmp_path.iterdir())) == 4
        makers[0].kill()
        makers[0].wait()
        remove_weights(tmp_path)
        assert len(list(tmp_path.iterdir())) == 3
        assert (tmp_path / "other").exists() and (tmp_path / f"{WEIGHTS}new").exists()
    finally:
        for maker in makers:
            maker.kill()
            maker.communicate()
