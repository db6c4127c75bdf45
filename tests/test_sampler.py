"""A real vLLM engine: seeds, logprobs, versions, and weights that arrive as they were sent."""

import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from builders import prompt
from engines import LocalClient, with_sampler

from rollout.config import SamplingConfig
from rollout.sampler import sample_seed

pytestmark = pytest.mark.vllm

MAX_GAP, MEAN_GAP = 1e-4, 1e-5
"""What fp32 rounding may do to a logprob; the contract of docs/weight_sync.md."""


def load(model: str):
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)


def logprobs_of(model, token_ids: list[int], temperature: float = 1.0) -> np.ndarray:
    import torch

    with torch.no_grad():
        logits = model(torch.tensor([token_ids])).logits[0, :-1] / temperature
    picked = logits.log_softmax(-1).gather(1, torch.tensor(token_ids[1:])[:, None])
    return picked[:, 0].numpy()


def perturb(model, seed: int) -> None:
    import torch

    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * parameter.std() * torch.randn_like(parameter))


def serve(sampler, sender, version: int) -> bool:
    """A publish, as `cluster/publish.py` does it; whether the sampler serves what was sent."""
    digest = sender.stage()
    served, of, paused = sampler.switch(version, digest).result(60)
    return bool(digest) and (served, of) == (version, digest) and paused > 0


def publish_and_compare(sampler, model_path: str, directory: str) -> list[dict]:
    from learner.source import ZeroSource
    from rollout.transfer import SharedMemorySender

    model = load(model_path)
    client = LocalClient(sampler)
    source = ZeroSource(model, sharded=False)
    sender = SharedMemorySender(source, client, rank=0, directory=Path(directory))
    left_behind = [path.name for path in Path(directory).iterdir()]
    tokens = np.random.default_rng(1).integers(0, 460, 60).tolist()
    rounds = []
    for version in (1, 2, 3):
        stale = sampler.score(tokens).result(60)
        perturb(model, version)
        acknowledged = serve(sampler, sender, version)
        fresh = sampler.score(tokens).result(60)
        sampling = SamplingConfig(temperature=0.7, max_tokens=20)
        [sampled] = sampler.generate(prompt(length=6), sampling, [version]).result(60)
        whole = [*prompt(length=6).token_ids.tolist(), *sampled.token_ids.tolist()]
        ours = logprobs_of(model, whole, 0.7)[5:]
        gap = np.abs(fresh - logprobs_of(model, tokens))
        rounds.append(
            {
                "moved": float(np.abs(fresh - stale).max()),
                "max": float(gap.max()),
                "mean": float(gap.mean()),
                "sampled": float(np.abs(sampled.logprobs - ours).max()),
                "versions": sorted(set(sampled.versions.tolist())),
                "acknowledged": acknowledged,
                "left_behind": left_behind,
            }
        )
    return rounds


@pytest.mark.parametrize(
    ("shape", "own_core"),
    [("tied", False), ("untied", False), pytest.param("tied", True, marks=pytest.mark.slow)],
    ids=["tied", "untied", "tied, core in a process of its own"],
)
def test_after_a_publish_the_sampler_computes_what_the_learner_does(
    shape: str, own_core: bool, tiny: Path, untied: Path, tmp_path: Path
):
    model = {"tied": tiny / "model", "untied": untied}[shape]
    weights = tmp_path / "weights"
    weights.mkdir()
    arguments = (str(model), str(weights))
    rounds = with_sampler(publish_and_compare, tmp_path, model, *arguments, own_core=own_core)
    for version, found in enumerate(rounds, start=1):
        assert found["moved"] > 0.05, "the update changed nothing: this test would prove nothing"
        assert found["max"] <= MAX_GAP and found["mean"] <= MEAN_GAP, found
        assert found["sampled"] <= MAX_GAP, found
        assert found["versions"] == [version]
        assert found["acknowledged"]
        assert found["left_behind"] == [], "the weight file's name outlived the handshake"


def publish_differences(sampler, model_path: str, refuses: bool) -> dict:
    """Through the `ray` backend: everything, then a few weights; then a difference from others, if
    the engine outlives an error (a core in a process of its own does not)."""
    import torch

    from learner.source import ZeroSource
    from rollout.transfer import PayloadSender

    model = load(model_path)
    client = LocalClient(sampler)
    sender = PayloadSender(ZeroSource(model, sharded=False), client, rank=0)
    tokens = np.random.default_rng(1).integers(0, 460, 60).tolist()
    found: dict = {"sent": [], "gaps": [], "moved": [], "acknowledged": []}
    for version in (1, 2, 3):
        before = sampler.score(tokens).result(60)
        with torch.no_grad():
            for parameter in model.parameters():
                changed = parameter.flatten()[:: 1 if version == 1 else 50]
                changed += 0.3 * parameter.std() * torch.randn_like(changed)
        acknowledged = serve(sampler, sender, version)
        after = sampler.score(tokens).result(60)
        found["sent"].append(sender.sent)
        found["moved"].append(float(np.abs(after - before).max()))
        found["gaps"].append(float(np.abs(after - logprobs_of(model, tokens)).max()))
        found["acknowledged"].append(acknowledged)
    if not refuses:
        return found
    sender._base = "0" * 64
    try:
        sender.stage()
    except RuntimeError as error:
        found["refused"] = str(error)
    serve(sampler, sender, 5)
    found["after"] = sender.sent
    return found


def publish_adapters(sampler, model_path: str, directory: str) -> dict:
    """Everything, then adapters alone, by `ray` or, where there is a directory, `shm`. In the third
    round `ray` has lost sight of what the sampler holds; the last two are another learner's."""
    import torch

    from learner import adapter
    from learner.config import LoraConfig
    from learner.source import AdapterSource
    from rollout.transfer import PayloadSender, SharedMemorySender

    model = load(model_path)
    adapter.attach(model, LoraConfig(rank=4, alpha=12))
    source, client = AdapterSource(model, sharded=False), LocalClient(sampler)

    def connect() -> SharedMemorySender | PayloadSender:
        if directory:
            return SharedMemorySender(source, client, rank=0, directory=Path(directory))
        return PayloadSender(source, client, rank=0)

    sender = connect()
    tokens = np.random.default_rng(1).integers(0, 460, 60).tolist()
    found: dict = {"sent": [], "gaps": [], "moved": [], "acknowledged": []}
    for version in (1, 2, 3, 4, 5):
        before = sampler.score(tokens).result(60)
        if version == 4:
            sender = connect()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter += 0.05 * torch.randn_like(parameter)
        if version == 3 and isinstance(sender, PayloadSender):
            sender._base = ""
        found["acknowledged"].append(serve(sampler, sender, version))
        after = sampler.score(tokens).result(60)
        found["sent"].append(sender.sent)
        found["moved"].append(float(np.abs(after - before).max()))
        found["gaps"].append(float(np.abs(after - logprobs_of(model, tokens)).max()))
    return found


@pytest.mark.parametrize(
    ("backend", "own_core"),
    [
        ("ray", False),
        pytest.param("shm", False, marks=pytest.mark.slow),
        pytest.param("ray", True, marks=pytest.mark.slow),
    ],
)
def test_adapters_travel_alone_behind_the_first_push(
    backend: str, own_core: bool, tiny: Path, tmp_path: Path
):
    weights = tmp_path / "weights"
    weights.mkdir()
    directory = str(weights) if backend == "shm" else ""
    model = tiny / "model"
    options = {"own_core": own_core, "backend": backend}
    found = with_sampler(publish_adapters, tmp_path, model, str(model), directory, **options)
    everything = [sent == 1.0 for sent in found["sent"]]
    assert everything == [True, False, backend == "ray", True, False], found
    assert all(0 < sent < 0.2 for sent in found["sent"] if sent < 1), found
    assert min(found["moved"]) > 0.01, "the update changed nothing: this proves nothing"
    assert max(found["gaps"]) <= MAX_GAP and all(found["acknowledged"]), found


@pytest.mark.parametrize(
    "own_core",
    [False, pytest.param(True, marks=pytest.mark.slow)],
    ids=["", "core in a process of its own"],
)
def test_weights_through_ray_and_their_differences(own_core: bool, tiny: Path, tmp_path: Path):
    model = tiny / "model"
    found = with_sampler(
        publish_differences,
        tmp_path,
        model,
        str(model),
        not own_core,
        own_core=own_core,
        backend="ray",
    )
    assert found["sent"][0] == 1.0 and max(found["sent"][1:]) < 0.15, "the first is everything"
    assert min(found["moved"]) > 0.01, "the update changed nothing: this proves nothing"
    assert max(found["gaps"]) <= MAX_GAP and all(found["acknowledged"])
    if not own_core:
        assert "sent a difference from 000000" in found["refused"]
        assert found["after"] == 1.0, "after a failure the samplers get everything"


def publish_by_broadcast(sampler, model_path: str) -> list[dict]:
    """As vLLM's `nccl` engines are driven: paused samplers, the learner's part, the version."""
    from learner.source import ZeroSource
    from rollout import broadcast
    from rollout.transfer import Endpoint, NativeSender, connect

    broadcast.BUCKET = 100_000  # several, and tensors that are larger than one
    model = load(model_path)
    source = ZeroSource(model, sharded=False)
    client = LocalClient(sampler)
    tokens = np.random.default_rng(1).integers(0, 460, 60).tolist()
    found = []
    for connection in (1, 2):  # the second as when a sampler has been replaced
        endpoint = Endpoint(backend="gloo", address="127.0.0.1", seconds=60.0)
        sender = connect(endpoint, source, client, rank=0)
        assert isinstance(sender, NativeSender)
        for push in (1, 2):
            version = 2 * connection + push
            stale = sampler.score(tokens).result(60)
            perturb(model, version)
            assert sender.stage() == ""
            sampler.pause("keep").result(60)
            sender.send(version)
            sampler.resume().result(60)
            fresh = sampler.score(tokens).result(60)
            gap = float(np.abs(fresh - logprobs_of(model, tokens)).max())
            moved = float(np.abs(fresh - stale).max())
            found.append({"moved": moved, "gap": gap, "acknowledged": client.acknowledged})
        sender.close()
    return found


@pytest.mark.parametrize(
    ("shape", "own_core"),
    [
        ("tied", False),
        pytest.param("untied", False, marks=pytest.mark.slow),
        pytest.param("tied", True, marks=pytest.mark.slow),
    ],
    ids=["tied", "untied", "tied, core in a process of its own"],
)
def test_weights_by_broadcast(shape: str, own_core: bool, tiny: Path, untied: Path, tmp_path: Path):
    model = {"tied": tiny / "model", "untied": untied}[shape]
    rounds = with_sampler(
        publish_by_broadcast, tmp_path, model, str(model), own_core=own_core, backend="gloo"
    )
    for version, found in enumerate(rounds, start=3):
        assert found["moved"] > 0.05, "the update changed nothing: this test would prove nothing"
        assert found["gap"] <= MAX_GAP, found
        assert found["acknowledged"] == [version, ""]


def wrong_weights(sampler, model_path: str, directory: str) -> dict[str, str]:
    import torch

    from learner.source import ZeroSource
    from rollout.transfer import NativeSender, SharedMemorySender, TensorMeta

    model = load(model_path)
    errors = {}

    class Broken(ZeroSource):
        def __init__(self, change: str) -> None:
            super().__init__(model, sharded=False)
            self.change = change

        def metadata(self) -> list[TensorMeta]:
            whole = super().metadata()
            if self.change == "missing":
                return whole[:-1]
            if self.change == "extra":
                return [*whole, TensorMeta("model.extra", torch.float32, (3,))]
            name, dtype, shape = whole[2]
            return [*whole[:2], TensorMeta(name, dtype, (shape[0] * 2, *shape[1:])), *whole[3:]]

    def attempt(name: str, action) -> None:
        try:
            action()
            errors[name] = ""
        except RuntimeError as error:
            errors[name] = str(error)

    def connect(source) -> SharedMemorySender:
        return SharedMemorySender(source, LocalClient(sampler), rank=0, directory=Path(directory))

    def native(change: str) -> None:
        """A backend of vLLM's own; its handshake never comes."""
        info = SimpleNamespace(is_sender=True)
        NativeSender(Broken(change), LocalClient(sampler), info)

    for change in ("missing", "extra", "shape"):
        attempt(change, lambda change=change: connect(Broken(change)))
        attempt(f"{change}, native", lambda change=change: native(change))

    class Damaging(LocalClient):
        def stage_weights(self, update_info) -> None:
            super().stage_weights({"digest": "0" * 64})

    damaging = SharedMemorySender(
        ZeroSource(model, sharded=False), Damaging(sampler), rank=0, directory=Path(directory)
    )
    attempt("damaged", damaging.stage)
    elsewhere = {**damaging._weights.announcement, "path": "/nowhere/x"}
    attempt("elsewhere", lambda: sampler.update("init", elsewhere).result(60))
    return errors


def test_weights_that_do_not_fit_are_refused_by_name(tiny: Path, tmp_path: Path):
    """vLLM itself takes all of these with at most a line in the log."""
    model = str(tiny / "model")
    errors = with_sampler(wrong_weights, tmp_path, tiny / "model", model, str(tmp_path))
    assert "model.norm.weight: the learner sends nothing" in errors["missing"]
    assert "model.extra: the learner sends [3], the sampler expects nothing" in errors["extra"]
    assert "the learner sends [" in errors["shape"] and "the sampler expects [" in errors["shape"]
    for change in ("missing", "extra", "shape"):
        assert errors[f"{change}, native"] == errors[change]
    assert "the weights arrived damaged" in errors["damaged"]
    assert "cluster.weight_directory must be one folder" in errors["elsewhere"]


def sample_twice(sampler) -> dict:
    sampling = SamplingConfig(max_tokens=24)
    prompts = [prompt(number, length=5 + number) for number in range(12)]
    seeds = [[sample_seed("run", p.id, 0, s) for s in range(4)] for p in prompts]
    together = [sampler.generate(p, sampling, s) for p, s in zip(prompts, seeds, strict=True)]
    first = [future.result(60) for future in together]
    alone = [
        [sampler.generate(p, sampling, [seed]).result(60)[0] for seed in row]
        for p, row in zip(prompts[:3], seeds[:3], strict=True)
    ]
    greedy = [sampler.generate(prompts[0], sampling, []).result(60)[0] for _ in range(2)]
    return {
        "same": all(
            np.array_equal(a.token_ids, b.token_ids) and np.array_equal(a.logprobs, b.logprobs)
            for one, other in zip(first, alone, strict=False)
            for a, b in zip(one, other, strict=True)
        ),
        "distinct": len({tuple(c.token_ids.tolist()) for group in first for c in group}),
        "greedy": np.array_equal(greedy[0].token_ids, greedy[1].token_ids),
        "versions": sorted({v for g in first for c in g for v in c.versions.tolist()}),
        "reasons": sorted({c.finish_reason for g in first for c in g}),
    }


def test_a_completion_depends_on_its_seed_and_on_nothing_else(tiny: Path, tmp_path: Path):
    found = with_sampler(sample_twice, tmp_path, tiny / "model")
    assert found["same"], "what runs beside a completion changed it"
    assert found["distinct"] == 48
    assert found["greedy"]
    assert found["versions"] == [0]


def stop_at_texts(sampler) -> dict:
    given, seeds, decode = prompt(length=8), range(96), sampler._tokenizer.decode
    free = sampler.generate(given, SamplingConfig(max_tokens=6), seeds).result(120)
    # vLLM sees no text behind bytes that are none, which a random model writes.
    clean = [n for n in seeds if "\ufffd" not in free[n].text]
    words = [decode(token) for n in clean for token in free[n].token_ids[1:4]]
    at = max((word for word in words if word.isalpha()), key=words.count)
    sampling = SamplingConfig(max_tokens=6, stop=[at])
    stopped = sampler.generate(given, sampling, seeds).result(120)
    pairs = [(free[n], stopped[n]) for n in clean]
    return {
        "found": sum(b.finish_reason == "stop" and b.text.endswith(at) for _, b in pairs),
        "all": all(b.text.count(at) == (at in a.text) for a, b in pairs),
        "prefix": all(
            np.array_equal(b.token_ids, a.token_ids[: len(b.token_ids)]) for a, b in pairs
        ),
        "at once": all(at not in decode(b.token_ids[:-1]) for _, b in pairs),
        "aligned": all(len(b.logprobs) == len(b.versions) == len(b.token_ids) for _, b in pairs),
    }


def test_a_text_ends_a_completion_and_stays_in_it(tiny: Path, tmp_path: Path):
    found = with_sampler(stop_at_texts, tmp_path, tiny / "model")
    assert found.pop("found") > 0
    assert all(found.values()), found


def update_in_flight(sampler, model_path: str, directory: str) -> dict:
    from learner.source import ZeroSource
    from rollout.transfer import SharedMemorySender

    model = load(model_path)
    client = LocalClient(sampler)
    source = ZeroSource(model, sharded=False)
    sender = SharedMemorySender(source, client, rank=0, directory=Path(directory))
    given, old = prompt(length=8), load(model_path)
    future = sampler.generate(given, SamplingConfig(max_tokens=180), [1, 2])
    time.sleep(0.25)
    perturb(model, 7)
    serve(sampler, sender, 1)
    report = {"switched": 0, "old": 0.0, "new": 0.0, "spread": 0.0}
    for sampled in future.result(120):
        seam = int((sampled.versions == 0).sum())
        if not 0 < seam < len(sampled.versions):
            continue
        report["switched"] += 1
        whole = [*given.token_ids.tolist(), *sampled.token_ids.tolist()]
        before = np.abs(sampled.logprobs - logprobs_of(old, whole)[7:])
        after = np.abs(sampled.logprobs - logprobs_of(model, whole)[7:])
        report["old"] = max(report["old"], float(before[:seam].max()))
        report["new"] = max(report["new"], float(after[seam:].max()))
        report["spread"] = max(report["spread"], float(before[seam:].max()))
    return report


def test_a_completion_that_lives_through_an_update_says_where_the_seam_is(
    tiny: Path, tmp_path: Path
):
    model = str(tiny / "model")
    found = with_sampler(update_in_flight, tmp_path, tiny / "model", model, str(tmp_path))
    assert found["switched"] > 0, "no completion was in flight at the update"
    assert found["old"] <= MAX_GAP, "tokens before the seam are not the old weights'"
    assert found["new"] <= MAX_GAP, "tokens behind the seam are not the new weights'"
    assert found["spread"] > 0.01, "old and new weights are the same: this proves nothing"


def stage_and_serve(sampler, model_path: str, directory: str) -> dict:
    """Weights that lie staged, that arrive damaged, that are staged twice: what is served?"""
    from learner.source import ZeroSource
    from rollout.receive import Mapped
    from rollout.transfer import SharedMemorySender

    model = load(model_path)
    client = LocalClient(sampler)
    source = ZeroSource(model, sharded=False)
    sender = SharedMemorySender(source, client, rank=0, directory=Path(directory))
    tokens = np.random.default_rng(1).integers(0, 460, 60).tolist()
    given, long = prompt(length=8), SamplingConfig(max_tokens=120)

    def sampled() -> list[list[int]]:
        return [c.token_ids.tolist() for c in sampler.generate(given, long, [1, 2]).result(60)]

    def gap() -> float:
        return float(np.abs(sampler.score(tokens).result(60) - logprobs_of(model, tokens)).max())

    calm = sampled()
    perturb(model, 1)
    parts = []
    stage_on = Mapped.stage_on

    def counted(engine: Mapped, seconds: float) -> bool:
        done = stage_on(engine, seconds)
        parts.append(engine._twin)
        return done

    Mapped.stage_on = counted
    decoding = sampler.generate(given, long, [1, 2])
    sender.stage()
    found = {"at_once": decoding.done(), "parts": len(parts), "twin": parts[-1] is not None}
    Mapped.stage_on = stage_on
    found["staged"] = gap()
    found["while_staging"] = [c.token_ids.tolist() for c in decoding.result(60)] == calm
    found["behind_staging"] = sampled() == calm
    honest, client.stage_weights = (
        client.stage_weights,
        lambda info: sampler.stage({"digest": "0" * 64}).result(60),
    )
    try:
        sender.stage()
    except RuntimeError as error:
        found["damaged"] = str(error)
    client.stage_weights = honest
    found["behind_damage"] = sampled() == calm
    try:
        sampler.switch(9, "0" * 64).result(60)
    except RuntimeError as error:
        found["unstaged"] = str(error)
    sampler.resume().result(60)
    sender.stage()
    perturb(model, 2)
    sender.stage()  # the learner died and its successor stages again
    for version in (1, 2):
        serve(sampler, sender, version)
        found[f"served {version}"] = gap()
        perturb(model, 3)
    return found


def test_staged_weights_serve_nobody_until_they_are_exchanged(tiny: Path, tmp_path: Path):
    model = str(tiny / "model")
    found = with_sampler(stage_and_serve, tmp_path, tiny / "model", model, str(tmp_path))
    assert not found["at_once"], "decoding had ended before the staging: this proves nothing"
    assert found["twin"], "weights were not loaded beside those that serve"
    assert found["parts"] > 3, "weights were not loaded in parts between decode steps"
    assert found["staged"] > 0.05, "old and new weights are the same: this proves nothing"
    assert found["while_staging"] and found["behind_staging"], "staged weights were served"
    assert "the weights arrived damaged" in found["damaged"]
    assert found["behind_damage"], "damaged weights were served"
    assert "staged are none" in found["unstaged"]
    assert found["served 1"] <= MAX_GAP and found["served 2"] <= MAX_GAP


def keep_kv_through_an_update(sampler, model_path: str, directory: str) -> dict:
    """40 completions of one prompt, of which the engine runs 32, and one that comes later."""
    from learner.source import ZeroSource
    from rollout.transfer import SharedMemorySender

    model = load(model_path)
    source = ZeroSource(model, sharded=False)
    sender = SharedMemorySender(source, LocalClient(sampler), rank=0, directory=Path(directory))
    given = prompt(length=100)  # three blocks of the prefix cache
    future = sampler.generate(given, SamplingConfig(max_tokens=90), list(range(40)))
    time.sleep(0.25)
    perturb(model, 7)
    serve(sampler, sender, 1)
    later = sampler.generate(given, SamplingConfig(max_tokens=8), [99])
    report = {"kept": [], "clean": [], "later": []}
    for kind, completions in (("", future.result(120)), ("later", later.result(60))):
        for sampled in completions:
            whole = [*given.token_ids.tolist(), *sampled.token_ids.tolist()]
            gap = np.abs(sampled.logprobs - logprobs_of(model, whole)[99:])
            new = sampled.versions == 1
            if new.any():
                name = kind or ("clean" if new.all() else "kept")
                report[name].append(float(gap[new].max()))
    return report


def test_kept_keys_and_values_are_read_by_nobody_else(tiny: Path, tmp_path: Path):
    model = str(tiny / "model")
    found = with_sampler(
        keep_kv_through_an_update,
        tmp_path,
        tiny / "model",
        model,
        str(tmp_path),
        options=("sampler.keep_kv=true",),
    )
    assert len(found["kept"]) > 4 and min(found["kept"]) > 2 * MAX_GAP, "nothing was kept"
    assert len(found["clean"]) >= 4, "nobody waited: this proves nothing of those that do"
    assert max(found["clean"]) <= MAX_GAP, "a completion that had not begun read the old weights'"
    assert max(found["later"]) <= MAX_GAP, "a later prompt read the old weights'"


def pause_in_flight(sampler) -> dict:
    """What becomes of completions under way, and of a prompt that comes during the pause."""
    given, long = prompt(length=8), SamplingConfig(max_tokens=180)
    found = {}
    for mode in ("wait", "abort"):
        under_way = sampler.generate(given, long, [1, 2])
        time.sleep(0.2)
        found[f"{mode}: early"] = under_way.done()
        paused = sampler.pause(mode)
        later = sampler.generate(prompt(3), SamplingConfig(max_tokens=4), [5])
        scored = sampler.score([1, 2, 3])
        paused.result(60)
        found[f"{mode}: done at the pause"] = under_way.done()
        found[f"{mode}: lengths"] = [len(c.token_ids) for c in under_way.result(60)]
        time.sleep(0.3)
        found[f"{mode}: sampled in the pause"] = later.done() or scored.done()
        sampler.resume().result(60)
        found[f"{mode}: later"] = len(later.result(60)[0].token_ids)
        found[f"{mode}: scored"] = len(scored.result(60))
    again = [sampler.generate(given, long, [1, 2]).result(60) for _ in range(2)]
    found["same"] = [c.token_ids.tolist() for c in again[0]] == [
        c.token_ids.tolist() for c in again[1]
    ]
    found["nothing"] = sampler.pause("wait").result(60) is None  # nothing is under way
    sampler.resume().result(60)
    return found


def test_a_pause_waits_for_completions_or_aborts_them(tiny: Path, tmp_path: Path):
    found = with_sampler(pause_in_flight, tmp_path, tiny / "model")
    for mode in ("wait", "abort"):
        assert not found[f"{mode}: early"], "it had ended before the pause: this proves nothing"
        assert found[f"{mode}: done at the pause"], mode
        assert not found[f"{mode}: sampled in the pause"], mode
        assert (found[f"{mode}: later"], found[f"{mode}: scored"]) == (4, 2)
    assert len(found["wait: lengths"]) == 2 and min(found["wait: lengths"]) > 8
    assert found["abort: lengths"] == []
    assert found["same"] and found["nothing"]


def test_seeds_do_not_overlap():
    seeds = {
        sample_seed("run", f"p{p}", ticket, sample)
        for p in range(50)
        for ticket in range(3)
        for sample in range(16)
    }
    assert len(seeds) == 50 * 3 * 16
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert sample_seed("run", "p", 0, 0) != sample_seed("run", "p", 0, 0, attempt=1)
