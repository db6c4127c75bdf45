"""What the learner computes on CUDA against what it computes on the CPU, in float32 and bfloat16.

The same bodies run with the CPU in CUDA's place, so that they are known to run; on CUDA they have
not run yet (docs/gpu.md)."""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "benchmarks"))

from gpu import TINY, Bench, g5, g7, loss_of, rows_of

from learner.batch import Rows, ask, collate
from learner.model import Policy
from learner.packing import Work

DEVICES = [
    pytest.param("cpu", marks=pytest.mark.slow),
    pytest.param(
        "cuda",
        marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA here"),
    ),
]
EXACT, HALF = 2e-4, 0.05
"""Largest gap of a logprob: of float32 in another order of sums; of bfloat16 to float32."""


@pytest.fixture(params=DEVICES)
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield Bench(torch.device(request.param), small=True, gemm=1e12, copy=1e9)
    torch.backends.cuda.matmul.allow_tf32 = before


def table() -> Rows:
    """Two groups of three siblings, of unlike length."""
    lengths, prompts = [30, 44, 21, 40, 12, 33], [8, 8, 8, 6, 6, 6]
    return rows_of(lengths, prompts, [0, 0, 0, 1, 1, 1], TINY.vocabulary)


def computed(
    bench: Bench, dtype: torch.dtype = torch.float32, *, chunk: int = 1 << 24, **layout: object
) -> tuple[np.ndarray, Tensor]:
    """(logprobs [N, T], a gradient), in one micro-batch; the same weights every time."""
    rows = table()
    with Bench(torch.device("cpu"), small=True).policy(TINY) as made:
        model = made.model.float().to(dtype).to(bench.device)
    policy = Policy(model, temperature=0.7, logits_chunk=chunk)
    if layout.pop("packed", False):
        layout["work"] = Work.of_model(model.config)
    every = np.arange(len(rows.tokens))
    batch = collate(rows, rows.trains_NT, every, bench.device, **layout)  # pyright: ignore
    logp, _ = ask(policy, batch, int(rows.trains_NT.sum()))
    weighted = loss_of(logp * torch.linspace(0.5, 2, logp.shape[1]).to(logp), batch.trains_ST)
    weighted.backward()
    found = np.zeros(rows.mask_NT.shape, dtype=np.float32)
    batch.scatter(logp.detach(), found)
    gradient = model.get_decoder().layers[0].self_attn.q_proj.weight.grad
    return found, gradient.float().cpu()


@pytest.fixture(scope="module")
def reference() -> tuple[np.ndarray, Tensor]:
    return computed(Bench(torch.device("cpu"), small=True))


def check(found: tuple[np.ndarray, Tensor], wanted: tuple[np.ndarray, Tensor], gap: float) -> None:
    (logp, gradient), (true_logp, true_gradient) = found, wanted
    assert np.abs(logp - true_logp).max() < gap
    assert float((gradient - true_gradient).norm() / true_gradient.norm()) < 20 * gap


def test_alone(bench: Bench, reference: tuple[np.ndarray, Tensor]):
    check(computed(bench), reference, EXACT)


def test_in_chunks(bench: Bench, reference: tuple[np.ndarray, Tensor]):
    check(computed(bench, chunk=10 * TINY.vocabulary), reference, EXACT)


def test_packed(bench: Bench, reference: tuple[np.ndarray, Tensor]):
    check(computed(bench, packed=True), reference, EXACT)
    check(computed(bench, packed=True, varlen=True), reference, EXACT)


def test_siblings_that_share_their_prompt(bench: Bench, reference: tuple[np.ndarray, Tensor]):
    check(computed(bench, shares=True), reference, EXACT)


def test_bfloat16_is_near(bench: Bench, reference: tuple[np.ndarray, Tensor]):
    logp, _ = computed(bench, torch.bfloat16)
    gap = np.abs(logp - reference[0])[table().mask_NT]
    assert gap.max() < HALF and gap.mean() < HALF / 5


def test_differences_of_weights_are_found_to_the_bit(bench: Bench):
    found = g7(bench)
    assert found["bit_exact"] and 0.005 < found["density"] < 0.02


def test_another_process_has_the_same_weights(bench: Bench):
    """Raises where what arrived is not what was sent."""
    found = g5(bench)
    if "left_out" in found:
        pytest.skip(found["left_out"])
    assert found["ratio"] > 0
