"""What scoring costs beside the verifiers: `python benchmarks/bench_rewards.py [NAME ...]`.

One JSON line each: name, value (median), interval (bootstrap, 90 %), target, ok. `pool_*` is the
throughput of the pool of Ray actors divided by that of as many processes that call the verifier in
a loop; both are measured in turn, in pairs, on the same core.
"""

import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from measure import chosen, interval  # noqa: E402

GROUP = 16
PAIRS = 7
TIMEOUT = 1.0

VERIFIER = """
import os, time
os.sched_setaffinity(0, {os.cpu_count() - 1})
def spin(text):
    # CPU time: two that share a core take twice as long, as real work does.
    end = time.thread_time() + float(text.split()[0])
    while time.thread_time() < end:
        pass
def verify(completion, answer):
    spin(completion)
    if completion.endswith("hang"):
        time.sleep(3600)
    return 1.0
"""


def line(
    name: str, what: str, values: list[float], target: str, ok: Callable[[float], bool]
) -> None:
    middle = statistics.median(values)
    shown = {
        "name": name,
        "what": what,
        "value": round(middle, 3),
        "interval": [round(bound, 3) for bound in interval(values)],
        "target": target,
        "ok": ok(middle),
    }
    print(json.dumps(shown), flush=True)


class Bench:
    """One pool of one actor, with a verifier that takes as long as a completion says."""

    def __init__(self, folder: Path) -> None:
        import ray

        from cluster.actors import ScorerActor
        from cluster.pool import Pool
        from cluster.run import calm_collector
        from cluster.scoring import Scorers
        from rewards import RewardConfig
        from rewards.scorer import LANES, rubric_of

        (folder / "timed_verifier.py").write_text(VERIFIER)
        sys.path.insert(0, str(folder))
        path = os.pathsep.join([str(ROOT), str(folder)])
        environment = {"env_vars": {"PYTHONPATH": path}}
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[:-1] or cores)  # the last is the verifiers' own
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        actor = ScorerActor.options(  # pyright: ignore[reportAttributeAccessIssue]
            num_cpus=1, max_concurrency=LANES, runtime_env=environment
        ).remote()
        config = RewardConfig.model_validate(
            {"verifiers": {"timed_verifier:verify": 1.0}, "timeout": TIMEOUT}
        )
        ray.get(actor.start.remote(config))
        self._runner = asyncio.Runner()
        pool = Pool("scorer", [cast(Any, actor)], seconds=600)
        self._scorers = Scorers(pool, rubric_of(config).needs)
        self.groups(1e-3, 4)  # warm
        calm_collector()  # as the driver of a run does

    def groups(
        self,
        seconds: float,
        count: int,
        *,
        hung: Callable[[int], bool] = lambda _: False,
        size: int = GROUP,
    ) -> float:
        """Seconds to score `count` groups, all handed in at once."""
        from rewards import Attempt, Task

        texts = [f"{seconds}{' hang' * hung(n)}" for n in range(count * size)]
        attempts = [Attempt(text=text, num_tokens=1, truncated=False) for text in texts]
        groups = [attempts[at : at + size] for at in range(0, len(attempts), size)]
        task = Task(answer="1")

        async def score() -> None:
            await asyncio.gather(*(self._scorers.verdicts(task, group) for group in groups))

        started = time.perf_counter()
        self._runner.run(score())
        return time.perf_counter() - started


def direct(seconds: float, count: int) -> float:
    """Seconds for one process that calls the verifier on as many completions, one after another."""
    import subprocess

    program = (
        "import time, timed_verifier as t\n"
        f"n, text = {count * GROUP}, {str(seconds)!r}\n"
        "start = time.perf_counter()\n"
        "for _ in range(n):\n    t.verify(text, '1')\n"
        "print(time.perf_counter() - start)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", program]
    return float(subprocess.run(command, env=environment, capture_output=True, check=True).stdout)


def throughput(bench: Bench, name: str, seconds: float, groups: int, target: float) -> None:
    ratios = []
    for _ in range(PAIRS):
        ratios.append(direct(seconds, groups) / bench.groups(seconds, groups))
    what = f"pool / direct calls, verifiers of {seconds * 1e3:g} ms, groups of {GROUP}"
    line(name, what, ratios, f">= {target}", lambda ratio: ratio >= target)


def hangs(bench: Bench) -> None:
    """Throughput of the completions that do not hang, with and without those that do."""
    losses = []
    for _ in range(PAIRS):
        count, seconds = 20, 20e-3
        without = bench.groups(seconds, count) / (count * GROUP)
        hung = [n for n in range(count * GROUP) if one_in_hundred(n)]
        spent = bench.groups(seconds, count, hung=one_in_hundred)
        losses.append(1 - without * (count * GROUP - len(hung)) / spent)
    what = "share of throughput lost when 1 % of completions hang, verifiers of 20 ms"
    line("pool_hangs", what, losses, "<= 0.02", lambda loss: loss <= 0.02)


def one_in_hundred(number: int) -> bool:
    return number % 100 == 50


def latency(bench: Bench) -> None:
    """How long after its timeout a completion that hangs has its verdict, in ms."""
    late = [(bench.groups(1e-3, 1, hung=always, size=1) - TIMEOUT) * 1e3 for _ in range(30)]
    worst = sorted(late)[-1:]
    line("pool_p99", "worst of 30 hung scorings, beyond the timeout, ms", worst, "<= 50", below_50)


def always(_: int) -> bool:
    return True


def below_50(ms: float) -> bool:
    return ms <= 50


def program_start(_: Any) -> None:
    from rewards.programs.grade import grade
    from rewards.programs.sandbox import TIERS, Limits, why_not
    from rewards.programs.suite import stdin

    for tier in TIERS[:-1]:
        if why_not(tier):
            continue
        spent = [
            grade(
                "print(input())", [stdin("1", "1")], tier=tier, limits=Limits(), seconds=4.0
            ).seconds
            * 1e3
            for _ in range(60)
        ]
        what = f"a program that prints a line, from start to verdict, tier {tier}, ms"
        line(f"program_{tier}", what, spent, "<= 60", lambda ms: ms <= 60)


BENCHMARKS: dict[str, Callable[[Any], None]] = {
    "pool_20ms": lambda bench: throughput(bench, "pool_20ms", 20e-3, 10, 0.95),
    "pool_1ms": lambda bench: throughput(bench, "pool_1ms", 1e-3, 100, 0.95),
    "pool_10us": lambda bench: throughput(bench, "pool_10us", 10e-6, 2_000, 0.80),
    "pool_hangs": hangs,
    "pool_p99": latency,
    "program_start": program_start,
}


def main() -> int:
    names = chosen(BENCHMARKS)
    import ray

    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder)) if any(n.startswith("pool") for n in names) else None
        for name in names:
            BENCHMARKS[name](bench)
        ray.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
