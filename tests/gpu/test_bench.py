"""`benchmarks/gpu.py` runs, on tiny sizes; its figures are for a GPU."""

import json
import subprocess
import sys

import pytest
from runs import ROOT, environment


@pytest.mark.slow
@pytest.mark.deepspeed
def test_every_measure_runs_on_a_cpu():
    done = subprocess.run(
        [sys.executable, "benchmarks/gpu.py", "--device", "cpu", "--small"],
        cwd=ROOT,
        env=environment(DS_ACCELERATOR="cpu", OMP_NUM_THREADS="2"),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    found = {line["name"]: line for line in lines}
    assert list(found) == ["ceilings", *(f"G{n}" for n in range(1, 15))]
    left_out = {name for name, line in found.items() if "left_out" in line}
    assert left_out == {"G5"} and not any("ok" in line for line in lines)


def test_without_cuda_it_says_so():
    done = subprocess.run(
        [sys.executable, "benchmarks/gpu.py", "--only", "G3"],
        cwd=ROOT,
        env=environment(CUDA_VISIBLE_DEVICES=""),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "there is no CUDA here" in done.stderr
