"""A node that runs out of memory: Ray kills the youngest actor there, no learner rank."""

from pathlib import Path

import pytest
from runs import metrics
from survival import Live, check_record

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.deepspeed, pytest.mark.slow]

GIB = 2**30
BALLOON = """
import time

def verify(completion):
    total = sum(map(ord, completion))
    if total % 41 == 0:
        hoard = bytearray(b"x") * (8 << 30)
        time.sleep(30)
    return total % 7 / 6
"""


def memory() -> dict[str, int]:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return {line.split(":")[0]: int(line.split()[1]) << 10 for line in lines}


def test_a_verifier_that_eats_all_memory_costs_its_group_and_no_learner_rank(
    tiny: Path, tmp_path: Path
):
    found = memory()
    if found["MemAvailable"] < 14 * GIB:
        pytest.skip("needs 14 GiB of free memory")
    taken = found["MemTotal"] - found["MemAvailable"]
    threshold = (taken + 7 * GIB) / found["MemTotal"]  # a run takes about 3
    balloon = tmp_path / "balloon.py"
    balloon.write_text(BALLOON)
    options = {
        "rewards.verifiers": f'{{"{balloon}:verify": 1.0}}',
        "rewards.memory_gib": "16",
        "rewards.timeout": "60",
    }
    run = Live(tmp_path, tiny, "hog", RAY_memory_usage_threshold=f"{threshold:.4f}", **options)
    output = run.end()
    check_record(run.folder, 8)
    losses = run.losses()
    assert "scorer/0" in {loss["who"] for loss in losses}, losses
    # What a scorer's child held may not be free yet when Ray looks again: a sampler is next then.
    assert not [loss for loss in losses if loss["who"].startswith("learner")], losses
    assert all("memory" in loss["why"] for loss in losses), losses
    unscorable = sum(row["reward/verifier_errors"] for row in metrics(run.folder))
    assert 0 < unscorable < 64 and "the verifier failed on" in output
