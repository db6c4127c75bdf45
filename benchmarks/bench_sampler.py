"""The samplers: against vLLM alone, and while weights arrive."""

import itertools
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measure import PAIRS, ROOT, demo_model, line, random_model, ratios


def settings_of(model: str, **overrides: Any) -> tuple[Any, dict[str, Any]]:
    """(config, arguments to vLLM) of the demo's sampler on this machine."""
    from cluster.config import load
    from cluster.device import resolve

    options = {"model.path": model, **overrides}
    recipe = str(ROOT / "recipes" / "demo.yaml")
    config = load([recipe], [f"{key}={value}" for key, value in options.items()]).config
    return config, {**resolve(config, gpus=0).engine_args, "weight_backend": "shm"}


def prompts_of(count: int, highest: int) -> list[Any]:
    import numpy as np

    from rollout import Prompt

    rng = np.random.default_rng(0)
    return [
        Prompt(
            id=str(i),
            token_ids=rng.integers(3, highest, 25).astype(np.int32),
            text="",
            answer="7",
            source="",
        )
        for i in range(count)
    ]


class Worker:
    """A process that does one kind of work at a word and says how long it took."""

    def __init__(self, target: Callable[..., None], *args: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._orders, self._answers = context.Queue(), context.Queue()
        self._process = context.Process(target=target, args=(*args, self._orders, self._answers))
        self._process.start()

    def ask(self, order: Any = True) -> Any:
        self._orders.put(order)
        return self._answers.get(timeout=300)

    def close(self) -> None:
        self._orders.put(None)
        self._process.join(30)
        self._process.kill()


# -- the whole rollout path against vLLM alone ----------------------------------------------------


def _ours(model: str, highest: int, max_tokens: int, orders: Any, answers: Any) -> None:
    from rewards import RewardConfig
    from rewards.scorer import Scorer
    from rollout import Group, ScoredGroup
    from rollout.sampler import Sampler, sample_seed
    from rollout.schema import to_table

    config, arguments = settings_of(model, **{"sampler.sampling.max_tokens": max_tokens})
    sampler = Sampler(model, config.sampler, arguments, config.max_model_len)
    scorer = Scorer(RewardConfig.model_validate({"verifiers": {"number": 1.0}}))
    prompts, sampling = prompts_of(32, highest), config.sampler.sampling
    while orders.get():
        started = time.perf_counter()
        futures = [
            sampler.generate(p, sampling, [sample_seed("b", p.id, 0, i) for i in range(8)])
            for p in prompts
        ]
        groups = []
        for ticket, (prompt, future) in enumerate(zip(prompts, futures, strict=True)):
            completions = future.result(300)
            scores = scorer.score(prompt.task(), [c.attempt() for c in completions])
            inner = Group(ticket=ticket, prompt=prompt, completions=completions)
            groups.append(ScoredGroup(group=inner, scores=tuple(scores)))
        to_table(groups, step=1, run="b", temperature=1.0)
        spent = time.perf_counter() - started
        tokens = sum(len(c.token_ids) for g in groups for c in g.group.completions)
        answers.put((spent, tokens))
    scorer.close()
    sampler.close()


def _raw(model: str, highest: int, max_tokens: int, orders: Any, answers: Any) -> None:
    from vllm import LLM, SamplingParams

    from rollout.sampler import Sampler, sample_seed

    config, device = settings_of(model, **{"sampler.sampling.max_tokens": max_tokens})
    arguments = Sampler._engine_args(model, config.sampler, device, config.max_model_len)
    for name in ("weight_backend", "worker_extension_cls"):
        arguments.pop(name)
    llm = LLM(**arguments)
    inputs, params = [], []
    for prompt in prompts_of(32, highest):
        for sample in range(8):
            inputs.append({"prompt_token_ids": prompt.token_ids.tolist()})
            params.append(
                SamplingParams(
                    temperature=config.sampler.sampling.temperature,
                    max_tokens=max_tokens,
                    seed=sample_seed("b", prompt.id, 0, sample),
                    logprobs=0,
                    flat_logprobs=True,
                    detokenize=False,
                )
            )
    while orders.get():
        started = time.perf_counter()
        outputs = llm.generate(inputs, params, use_tqdm=False)
        spent = time.perf_counter() - started
        answers.put((spent, sum(len(o.outputs[0].token_ids) for o in outputs)))


def b3() -> None:
    with tempfile.TemporaryDirectory() as folder:
        demo = demo_model(Path(folder) / "demo")
        for name, hidden, layers, target in (
            ("B3", 256, 6, ">= 0.98"),
            ("B3_tiny", 0, 0, ">= 0.95"),
        ):
            model = demo
            if hidden:
                model = with_tokenizer_of(demo, Path(folder) / name, hidden, layers)
            workers = [Worker(target, model, 400, 48) for target in (_ours, _raw)]
            rates: list[list[float]] = [[], []]
            for pair in range(10):
                for number in (0, 1) if pair % 2 else (1, 0):
                    spent, tokens = workers[number].ask()
                    if pair:
                        rates[number].append(tokens / spent)
            for worker in workers:
                worker.close()
            what = "tokens/s through sampler, verifiers and Arrow / vllm.LLM.generate"
            line(name, what, ratios(*rates), target, tokens_per_s=round(rates[0][-1]))


def with_tokenizer_of(source: str, folder: Path, hidden: int, layers: int) -> str:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source)
    model = random_model(folder, hidden=hidden, layers=layers, vocabulary=len(tokenizer))
    tokenizer.save_pretrained(folder)
    return model


# -- one request per completion against vLLM's n --------------------------------------------------


def _requests(model: str, orders: Any, answers: Any) -> None:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    from rollout.sampler import Sampler, sample_seed

    config, arguments = settings_of(model)
    sampler = Sampler(model, config.sampler, arguments, config.max_model_len)
    prompts, sampling = prompts_of(32, 460), config.sampler.sampling
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

    class One:
        def __init__(self, output: Any, index: int) -> None:
            self.outputs = [output.outputs[index]]

    def unpacked(outputs: list[Any]) -> list[Any]:
        count = len(outputs[0].outputs)
        return [sampler._completion(One(outputs[0], index)) for index in range(count)]

    while order := orders.get():
        started = time.perf_counter()
        if order == "ours":
            futures = [
                sampler.generate(p, sampling, [sample_seed("b", p.id, 0, i) for i in range(8)])
                for p in prompts
            ]
        else:
            futures = [sampler._submit(p.token_ids.tolist(), [params], unpacked) for p in prompts]
        for future in futures:
            future.result(60)
        answers.put(time.perf_counter() - started)
    sampler.close()


def group_requests() -> None:
    """Sampling a step of the demo's size: our request per completion against vLLM's n=8."""
    with tempfile.TemporaryDirectory() as folder:
        worker = Worker(_requests, demo_model(Path(folder)))
        seconds: list[list[float]] = [[], []]
        for pair in range(PAIRS + 1):
            for number, order in enumerate(("ours", "n=8")):
                spent = worker.ask(order)
                if pair:
                    seconds[number].append(spent)
        worker.close()
    line("group_requests", "8 requests of 1 / 1 request of n=8", ratios(*seconds))


# -- the push -------------------------------------------------------------------------------------


def _push(model: str, folder: str, keep_kv: bool, orders: Any, answers: Any) -> None:
    """Orders: "push", the seconds of a push to this live sampler and of one pass over the same
    bytes; "gap", the longest gap between tokens around a push and the median decode step."""
    import threading

    import torch

    from learner.model import load_model
    from learner.source import ZeroSource
    from rollout.config import SamplingConfig
    from rollout.sampler import Sampler
    from rollout.transfer import SharedMemorySender

    settings = {
        "sampler.sampling.max_tokens": 400,
        "sampler.max_running": 16,
        "sampler.keep_kv": keep_kv,
    }
    config, arguments = settings_of(model, **settings)
    sampler = Sampler(model, config.sampler, arguments, config.max_model_len)
    learned = load_model(model, dtype=torch.float32)

    class Client:
        def init_weight_transfer_engine(self, init_info: dict) -> None:
            sampler.update("init", init_info).result(60)

        def stage_weights(self, update_info: dict) -> None:
            sampler.stage(update_info).result(60)

    source = ZeroSource(learned, sharded=False)
    sender = SharedMemorySender(source, Client(), rank=0, directory=Path(folder))
    weights = [tensor for _, tensor in source]
    size = sum(t.numel() * t.element_size() for t in weights)
    copies = [torch.empty_like(t) for t in weights]
    version = 0
    while order := orders.get():
        version += 1
        if order == "push":
            started = time.perf_counter()
            checksum = sender.stage()
            paused = time.perf_counter()
            staged = paused - started
            sampler.switch(version, checksum).result(60)
            ended = time.perf_counter()
            for copy, tensor in zip(copies, weights, strict=True):
                copy.copy_(tensor)
            limit = time.perf_counter() - ended
            answers.put((staged, ended - paused, limit, size))
            continue
        times: list[float] = []
        engine_step = sampler._engine.step

        def step(engine_step: Any = engine_step, times: list[float] = times) -> Any:
            outputs = engine_step()
            times.append(time.perf_counter())
            return outputs

        sampler._engine.step = step
        sampling = SamplingConfig(max_tokens=400)
        futures = [sampler.generate(p, sampling, [1]) for p in prompts_of(8, 400)]
        pushed = threading.Event()

        def push(version: int = version, pushed: threading.Event = pushed) -> None:
            time.sleep(0.4)
            sampler.switch(version, sender.stage()).result(60)
            pushed.set()

        thread = threading.Thread(target=push)
        thread.start()
        thread.join(120)
        during = len(times)
        for future in futures:
            future.result(120)
        sampler._engine.step = engine_step
        gaps = [b - a for a, b in itertools.pairwise(times)]
        if not pushed.is_set() or during >= len(times) - 3:
            answers.put(None)  # the completions ended before the push: no measure
        else:
            answers.put((max(gaps[5 : during + 5]), statistics.median(gaps[during + 5 :])))
    sampler.close()


def b5() -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        tempfile.TemporaryDirectory(dir="/dev/shm") as shm,
    ):
        demo = demo_model(Path(folder) / "demo")
        for name, hidden, layers in (("B5", 1024, 16), ("B5_small", 256, 8)):
            model = with_tokenizer_of(demo, Path(folder) / name, hidden, layers)
            worker = Worker(_push, model, shm, False)
            found = [worker.ask("push") for _ in range(PAIRS + 2)][2:]
            worker.close()
            whole = [limit / (staged + paused) for staged, paused, limit, _ in found]
            pauses = [limit / paused for _, paused, limit, _ in found]
            megabytes = found[0][3] / 2**20
            what = f"bytes/s of a push of {megabytes:.0f} MiB / of one pass over the same buffers"
            line(name, what, whole, ">= 0.85" if megabytes >= 250 else ">= 0.5")
            line(f"{name}_pause", "the same, of the pause: what was staged is exchanged", pauses)


def b6() -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        tempfile.TemporaryDirectory(dir="/dev/shm") as shm,
    ):
        demo = demo_model(Path(folder) / "demo")
        model = with_tokenizer_of(demo, Path(folder) / "model", 512, 8)
        for name, keep_kv in (("B6", False), ("B6_keep_kv", True)):
            worker = Worker(_push, model, shm, keep_kv)
            found = [worker.ask("gap") for _ in range(PAIRS)]
            worker.close()
            gaps = [gap / step for gap, step in filter(None, found)]
            what = "longest gap between two tokens around an update / median decode step"
            kept = "kept" if keep_kv else "recomputed"
            line(name, f"{what}, 25M parameters, keys and values {kept}", gaps, "<= 2")
