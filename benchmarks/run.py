"""Ratios measured in one run, interleaved: `python benchmarks/run.py [NAME ...]`.

One JSON line each: name, ratio (median of pairs), interval (bootstrap, 90 %), pairs. Times on
shared machines drift; a ratio of neighbours in time does not.
"""

import json
import multiprocessing
import os
import random
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
ENV = {
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "passive",
    "TORCHDYNAMO_DISABLE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "DS_ACCELERATOR": "cpu",
    "HF_HUB_OFFLINE": "1",
}
PAIRS = 15


def interval(values: list[float]) -> tuple[float, float]:
    """Of their median: bootstrap, 90 %."""
    rng = random.Random(0)
    medians = sorted(statistics.median(rng.choices(values, k=len(values))) for _ in range(2_000))
    return medians[100], medians[1_900]


def report(name: str, first: list[float], second: list[float], what: str) -> None:
    """The ratio first / second, pair by pair."""
    ratios = [a / b for a, b in zip(first, second, strict=True)]
    line = {
        "name": name,
        "what": what,
        "ratio": round(statistics.median(ratios), 3),
        "interval": [round(bound, 3) for bound in interval(ratios)],
        "pairs": len(ratios),
    }
    print(json.dumps(line), flush=True)


def tables_of(folder: Path, count: int) -> list[Any]:
    """Tables shaped like the demo's: 32 prompts x 8 completions of about 25 tokens."""
    import numpy as np

    from rewards import Score
    from rollout import Completion, Group, Prompt, ScoredGroup
    from rollout.schema import to_table

    rng = np.random.default_rng(0)

    def tokens(length: int) -> Any:
        return rng.integers(1, 460, length).astype(np.int32)

    def completion() -> Completion:
        length = int(rng.integers(18, 36))
        return Completion(
            token_ids=tokens(length),
            trainable=np.ones(length, dtype=np.bool_),
            logprobs=np.full(length, -1.0, dtype=np.float32),
            versions=np.zeros(length, dtype=np.int32),
            text="",
            finish_reason="stop",
        )

    def group(ticket: int) -> ScoredGroup:
        prompt = Prompt(id="b", token_ids=tokens(25), text="", answer="", source="b")
        inner = Group(
            ticket=ticket, prompt=prompt, completions=tuple(completion() for _ in range(8))
        )
        scores = tuple(Score(reward=float(i % 2), parts={}) for i in range(8))
        return ScoredGroup(group=inner, scores=scores)

    return [
        to_table([group(i) for i in range(32)], step=1, run="b", temperature=1.0)
        for _ in range(count)
    ]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def placement_of(rank: int, ranks: int, port: int) -> Any:
    """A learner rank of this machine, in float32."""
    import torch

    from learner.engine import Placement

    torch.set_num_threads(1)
    return Placement(
        rank=rank,
        ranks=ranks,
        address="127.0.0.1",
        port=port,
        collectives="gloo",
        dtype=torch.float32,
    )


def _learner_rank(rank: int, ranks: int, port: int, model: str, orders: Any, answers: Any) -> None:
    from learner.config import LearnerConfig, ModelConfig
    from learner.learner import Learner

    placement = placement_of(rank, ranks, port)
    learner = Learner(
        LearnerConfig(ranks=ranks), ModelConfig(path=model), placement, steps=100, temperature=1.0
    )
    [table] = tables_of(Path(), 1)
    learner.update(table)
    answers.put(0.0)
    while orders.get():
        started = time.perf_counter()
        learner.update(table)
        answers.put(time.perf_counter() - started)
    learner.close()


def learner_ranks(model: str) -> None:
    """One update of the demo's size: two gloo ranks at ZeRO 2 against one, on this machine."""
    context = multiprocessing.get_context("spawn")
    teams: list[list[tuple[Any, Any, Any]]] = []
    for ranks in (1, 2):
        port, team = free_port(), []
        for rank in range(ranks):
            orders, answers = context.Queue(), context.Queue()
            target = (rank, ranks, port, model, orders, answers)
            process = context.Process(target=_learner_rank, args=target)
            process.start()
            team.append((process, orders, answers))
        for _, _, answers in team:
            answers.get(timeout=120)
        teams.append(team)
    seconds: list[list[float]] = [[], []]
    for _ in range(PAIRS):
        for number, team in enumerate(teams):
            for _, orders, _ in team:
                orders.put(True)
            seconds[number].append(max(answers.get(timeout=120) for _, _, answers in team))
    for team in teams:
        for process, orders, _ in team:
            orders.put(False)
            process.join(30)
    report("learner_ranks", seconds[1], seconds[0], "update on 2 ranks / update on 1 rank")


def _requests(model: str, out: str) -> None:
    import numpy as np

    from cluster.config import load
    from cluster.device import resolve
    from rollout import Prompt
    from rollout.sampler import Sampler, sample_seed

    recipe = str(ROOT / "recipes" / "demo.yaml")
    config = load([recipe], [f"model.path={model}"]).config
    arguments = {**resolve(config, gpus=0).engine_args, "weight_backend": "shm"}
    sampler = Sampler(model, config.sampler, arguments, config.max_model_len)
    rng = np.random.default_rng(0)
    prompts = [
        Prompt(
            id=str(i),
            token_ids=rng.integers(1, 460, 25).astype(np.int32),
            text="",
            answer="",
            source="",
        )
        for i in range(32)
    ]
    sampling = config.sampler.sampling

    def ours() -> None:
        """A request per completion, a hashed seed each."""
        futures = [
            sampler.generate(p, sampling, [sample_seed("b", p.id, 0, i) for i in range(8)])
            for p in prompts
        ]
        for future in futures:
            future.result(60)

    def fanned() -> None:
        """vLLM's own n=8: one request per prompt, seeds seed + j."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(
            n=8,
            seed=1,
            temperature=1.0,
            max_tokens=sampling.max_tokens,
            logprobs=0,
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        futures = [
            sampler._submit(
                p.token_ids.tolist(),
                [params],
                lambda outputs: [
                    sampler._completion(_One(outputs[0], i)) for i in range(len(outputs[0].outputs))
                ],
            )
            for p in prompts
        ]
        for future in futures:
            future.result(60)

    class _One:
        def __init__(self, output: Any, index: int) -> None:
            self.outputs = [output.outputs[index]]

    seconds: list[list[float]] = [[], []]
    for pair in range(PAIRS + 1):
        for number, work in enumerate((ours, fanned)):
            started = time.perf_counter()
            work()
            if pair:  # the first is warm-up
                seconds[number].append(time.perf_counter() - started)
    sampler.close()
    Path(out).write_text(json.dumps(seconds))


def group_requests(model: str) -> None:
    """Sampling a step of the demo's size: our request per completion against vLLM's n=8."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "seconds.json"
        context = multiprocessing.get_context("spawn")
        process = context.Process(target=_requests, args=(model, str(out)))
        process.start()
        process.join(300)
        ours, fanned = json.loads(out.read_text())
    report("group_requests", ours, fanned, "8 requests of 1 / 1 request of n=8")


BENCHMARKS: dict[str, Callable[[str], None]] = {
    "learner_ranks": learner_ranks,
    "group_requests": group_requests,
}


def chosen(benchmarks: Iterable[str]) -> list[str]:
    """Those named on the command line, or all. Ends with status 2 at a name that is none."""
    known = list(benchmarks)
    unknown = [name for name in sys.argv[1:] if name not in known]
    if unknown:
        print(f"no benchmark {unknown}; there are {', '.join(known)}", file=sys.stderr)
        raise SystemExit(2)
    return sys.argv[1:] or known


def main() -> int:
    names = chosen(BENCHMARKS)
    os.environ.update(ENV)
    from recipes.demo import build

    with tempfile.TemporaryDirectory() as folder:
        start = Path(folder) / "start"
        build(start, seed=1, train_problems=10, card_rows=1, demonstrations=1)
        for name in names:
            BENCHMARKS[name](str(start / "model"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
