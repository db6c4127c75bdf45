"""`make soak`: a real run whose processes are killed and frozen at random, and what its record says
in the end.

    PYTHONPATH=. python tests/soak.py [--minutes 30] [--seed N] [--every 25]
"""

import argparse
import os
import random
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path

from runs import until_gone
from survival import Live, check_record

from cluster.tools import audit

ROLES = ("sampler-0", "sampler-1", "learner-0", "learner-1", "scorer-0", "driver")
BOUND = 2


def hurt(run: Live, rng: random.Random) -> str:
    """Kill or freeze one process; which, and how."""
    role, number = rng.choice(ROLES), rng.choice((signal.SIGKILL, signal.SIGSTOP))
    if role == "driver":
        os.kill(run.process.pid, signal.SIGKILL)
        run.process.wait()
        until_gone(run.folder)
        run.again()
        return "driver SIGKILL"
    try:
        os.kill(run.pid(role), number)
    except (ProcessLookupError, IndexError):
        return f"{role} was not there"
    return f"{role} {signal.Signals(number).name}"


def soak(minutes: float, seed: int, every: float) -> None:
    from recipes.demo import build

    rng, done = random.Random(seed), Counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build(folder / "tiny", seed=1, train_problems=400, card_rows=20, demonstrations=80)
        options = {
            "steps": "100000",
            "schedule.max_staleness": str(BOUND),
            "cluster.sampler_restarts": "1000",
            "cluster.learner_restarts": "1000",
            "cluster.start_restarts": "1000",
            "checkpoint.every": "20",
        }
        run = Live(folder, folder / "tiny", "soak", **options)
        run.until_step(3)
        ends = time.monotonic() + 60 * minutes
        while time.monotonic() < ends:
            time.sleep(min(rng.expovariate(1 / every), max(ends - time.monotonic(), 0)))
            if run.process.poll() is not None:
                raise AssertionError(f"the run ended:\n{run.end(expect=None)[-6000:]}")
            what = hurt(run, rng)
            done[what] += 1
            print(
                f"{ends - time.monotonic():6.0f} s left, step {run.steps_done}: {what}", flush=True
            )
        time.sleep(60)  # all that is frozen is found
        run.until_step(run.steps_done + 2)
        run.process.send_signal(signal.SIGTERM)
        run.end(expect=143, seconds=60)
        left = [path.name for path in Path("/dev/shm").glob("cohort-weights-*")]
        assert left == [], f"shared memory that is nobody's: {left}"
        steps = run.steps_done
        check_record(run.folder, steps, bound=BOUND)
        assert audit.verify(run.folder) == 0
        outcomes = Counter(loss["outcome"] for loss in run.losses())
    print(f"{steps} steps; {dict(done)}; {dict(outcomes)}; every invariant holds (seed {seed})")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10**6)
    parser.add_argument("--every", type=float, default=25, help="mean seconds between two faults")
    given = parser.parse_args()
    print(f"seed {given.seed}", flush=True)
    soak(given.minutes, given.seed, given.every)
