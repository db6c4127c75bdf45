"""Micro-batches: each row once, like work everywhere, and packed sequences that do not see each
other."""

from dataclasses import replace
from typing import Any

import builders
import numpy as np
import pytest
import torch
from builders import group
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.batch import ask, collate, plan, read_rows
from learner.packing import (
    PACKABLE,
    SHAREABLE,
    WIDEST,
    Work,
    balanced,
    can_pack,
    can_share,
    layout,
)
from rollout import ScoredGroup
from rollout.schema import to_table

CPU = torch.device("cpu")
WORK = Work(linear=1.0, quadratic=1e-3)


def ragged(count: int, seed: int = 0, longest: int = 2048) -> np.ndarray:
    """Lengths as completions have them: lognormal with sigma 1."""
    drawn = np.random.default_rng(seed).lognormal(5.5, 1.0, count)
    return np.clip(drawn, 8, longest).astype(np.int64)


@settings(max_examples=300, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 300), min_size=1, max_size=60),
    ranks=st.integers(1, 5),
    budget=st.integers(50, 1000),
    quadratic=st.sampled_from([0.0, 1e-3, 1.0]),
)
def test_each_row_once_within_the_budget_and_as_many_micro_batches_on_every_rank(
    lengths: list[int], ranks: int, budget: int, quadratic: float
):
    lengths_N, chosen = np.array(lengths), np.arange(len(lengths))[::2]
    work = Work(1.0, quadratic)
    per_rank = balanced(lengths_N, chosen, ranks=ranks, budget=budget, work=work)
    every = [batch for batches in per_rank for batch in batches]
    assert sorted(np.concatenate(every).tolist()) == chosen.tolist()
    assert len({len(batches) for batches in per_rank}) == 1
    for batch in every:
        assert lengths_N[batch].sum() <= budget or len(batch) == 1


@pytest.mark.parametrize("ranks", [1, 2, 8])
def test_ranks_and_micro_batches_get_like_work(ranks: int):
    lengths_N = ragged(8192)
    per_rank = balanced(lengths_N, np.arange(8192), ranks=ranks, budget=4 * 2048, work=WORK)
    cost = np.array([[WORK.of(lengths_N[b]).sum() for b in batches] for batches in per_rank])
    assert cost.sum(axis=1).max() / cost.sum(axis=1).mean() <= 1.01, "ranks"
    assert (cost.max(axis=0) / cost.mean(axis=0)).max() <= 1.01, "ranks at each micro-batch"


@settings(max_examples=200, deadline=None)
@given(lengths=st.lists(st.integers(1, 200), min_size=1, max_size=80))
def test_a_layout_holds_each_sequence_once_and_is_never_worse_than_padding(lengths: list[int]):
    rows = layout(lengths, WORK)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    width = max(sum(lengths[i] for i in row) for row in rows)
    assert len(rows) * WORK.of(width) <= len(lengths) * WORK.of(max(lengths)) + 1e-9
    assert layout(lengths, WORK, varlen=True) == [list(range(len(lengths)))]


def test_rows_of_ragged_sequences_are_full():
    lengths_N = ragged(400, seed=1)
    for [batch] in zip(
        *balanced(lengths_N, np.arange(400), ranks=1, budget=8192, work=WORK), strict=True
    ):
        lengths = lengths_N[batch].tolist()
        rows = layout(lengths, Work(1.0, 0.0))
        width = max(sum(lengths[i] for i in row) for row in rows)
        assert sum(lengths) / (len(rows) * width) >= 0.95, sorted(lengths)


def kind(name: str) -> Any:
    import transformers

    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 450,
             "max_position_embeddings": 512, "pad_token_id": 0}  # fmt: skip
    if name == "gpt2":
        small = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 450, "n_positions": 512}
    if name.startswith("gemma") or name == "qwen3":
        small["head_dim"] = 8
    return transformers.AutoConfig.for_model(name, **small)


def rows_of_lengths(lengths: tuple[int, ...]):
    scored = group(0, tuple(float(i % 2) for i in range(len(lengths))), lengths=lengths)
    return read_rows(to_table([scored], step=1, run="r", temperature=1.0))


def said_of(policy: Any, batch: Any) -> tuple[torch.Tensor, ...]:
    """Logprobs, entropies, and the gradient of a weighted sum of the former."""
    logp_ST, entropy_ST = ask(policy, batch, 1000)
    weights = torch.linspace(-1, 1, logp_ST.numel()).reshape(logp_ST.shape)
    policy.zero_grad()
    (logp_ST * weights).sum().backward()
    gradient = torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])
    return logp_ST.detach(), entropy_ST.detach(), gradient


@pytest.mark.parametrize("name", sorted(PACKABLE))
def test_packed_sequences_give_the_logprobs_and_gradients_of_padded_ones(name: str):
    import transformers

    from learner.model import Policy

    torch.manual_seed(0)
    config = kind(name)
    assert can_pack(config)
    model = transformers.AutoModelForCausalLM.from_config(config)
    policy = Policy(model.eval(), temperature=1.0, logits_chunk=1 << 20)
    rows = rows_of_lengths((60, 3, 7, 25, 31, 4, 12, 58, 2, 20))
    padded, packed = (
        collate(rows, rows.trains_NT, np.arange(10), CPU, work=work)
        for work in (None, Work(1.0, 1e-6))
    )
    plain, shared = said_of(policy, padded), said_of(policy, packed)
    assert packed.places_ST is not None, "nothing was packed: this proves nothing"
    assert packed.tokens_BT.numel() < 0.7 * padded.tokens_BT.numel()
    assert int(packed.trains_BT.sum()) == int(padded.trains_BT.sum())
    for ours, theirs in zip(shared, plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-5)


def family(prompt: int, completions: tuple[int, ...], ticket: int = 0) -> ScoredGroup:
    """A group with a prompt of this length."""
    scored = group(
        ticket, tuple(float(i % 2) for i in range(len(completions))), lengths=completions
    )
    inner = replace(scored.group, prompt=builders.prompt(ticket, length=prompt))
    return replace(scored, group=inner)


FAMILIES = [family(40, (6, 3, 9, 4), 0), family(25, (5, 5, 1, 8), 1), family(1, (7, 2), 2)]


@pytest.mark.parametrize("name", sorted(SHAREABLE))
def test_siblings_that_share_their_prompt_give_the_logprobs_and_gradients_of_padded_rows(name: str):
    import transformers

    from learner.model import Policy

    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(kind(name))
    assert can_share(model.config)
    policy = Policy(model.eval(), temperature=1.0, logits_chunk=1 << 20)
    rows = read_rows(to_table(FAMILIES, step=1, run="r", temperature=1.0))
    order = np.array([8, 0, 4, 1, 5, 2, 9, 3, 6, 7])
    padded, together = (
        collate(rows, rows.trains_NT, order, CPU, shares=shares) for shares in (False, True)
    )
    plain, shared = said_of(policy, padded), said_of(policy, together)
    assert together.tokens_BT.shape[0] == 3
    assert int(together.trains_BT.sum()) == int(padded.trains_BT.sum())
    for ours, theirs in zip(shared, plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-5)


def test_models_whose_attention_has_a_window_do_not_share():
    import transformers as t

    assert can_share(t.LlamaConfig()) and can_share(t.Qwen2Config(use_sliding_window=False))
    assert not can_share(t.Qwen2Config(use_sliding_window=True, sliding_window=128))
    assert not can_share(t.MistralConfig(sliding_window=128)) and not can_share(t.Gemma2Config())
    assert not can_share(t.LlamaConfig(attn_implementation="flash_attention_2"))


@settings(max_examples=100, deadline=None)
@given(
    prompts=st.lists(st.integers(1, 900), min_size=1, max_size=6),
    completions=st.lists(st.integers(1, 60), min_size=1, max_size=8),
    ranks=st.integers(1, 3),
)
def test_a_plan_holds_each_row_once_however_it_is_cut(
    prompts: list[int], completions: list[int], ranks: int
):
    groups = [family(p, tuple(completions), i) for i, p in enumerate(prompts)]
    rows = read_rows(to_table(groups, step=1, run="r", temperature=1.0))
    sizes, everyone = rows.trains_NT.sum(axis=1), np.arange(len(rows.tokens))
    budget = 2048
    planned = plan(
        sizes,
        rows.lengths_N,
        everyone,
        ranks=ranks,
        micro_batch_tokens=budget,
        work=WORK,
        siblings=rows.siblings,
    )
    taken = np.concatenate([part.rows for slices in planned for part in slices])
    assert sorted(taken.tolist()) == everyone.tolist()
    assert len({len(slices) for slices in planned}) == 1
    for part in planned[0]:
        batch = collate(rows, rows.trains_NT, part.rows, CPU, shares=part.layout == "shared")
        assert sorted(row for row, *_ in batch.spans) == sorted(part.rows.tolist())
        if part.layout == "shared" and len(part.rows):
            assert batch.tokens_BT.shape[0] <= len(prompts)


def test_siblings_share_a_prompt_that_is_long_and_no_short_one():
    def layout_of(prompt: int, completion: int, size: int) -> str:
        given = [family(prompt, (completion,) * size, ticket) for ticket in range(2)]
        rows = read_rows(to_table(given, step=1, run="r", temperature=1.0))
        [[part, *_]] = plan(
            rows.trains_NT.sum(axis=1),
            rows.lengths_N,
            np.arange(2 * size),
            ranks=1,
            micro_batch_tokens=1 << 20,
            work=Work(1.0, 1e-4),
            siblings=rows.siblings,
        )
        return part.layout

    assert layout_of(500, 50, 8) == "shared"
    assert layout_of(30, 200, 8) == "padded"
    assert layout_of(500, 50, 1) == "padded", "nobody to share with"


def test_a_family_too_wide_for_a_mask_is_cut():
    rows = read_rows(to_table([family(3000, (2000,) * 6)], step=1, run="r", temperature=1.0))
    siblings, everyone = rows.siblings, np.arange(6)

    def sizes(**given: int) -> list[int]:
        return [len(f) for f in siblings.families(rows.lengths_N, everyone, **given)]

    assert sizes(budget=1 << 20) == [2, 2, 2], "WIDEST"
    assert sizes(budget=6000) == [1] * 6
    assert sizes(budget=1 << 20, ranks=6) == [1] * 6, "a part for each rank"
    for found in siblings.families(rows.lengths_N, everyone, budget=1 << 20):
        assert siblings.width(rows.lengths_N, found) <= WIDEST


def test_no_rank_idles_so_that_siblings_may_share():
    """Two groups on eight ranks: whole families would leave six of them with nothing to do."""
    given = [family(300, (400,) * 16, ticket) for ticket in range(2)]
    rows = read_rows(to_table(given, step=1, run="r", temperature=1.0))
    planned = plan(
        rows.trains_NT.sum(axis=1),
        rows.lengths_N,
        np.arange(32),
        ranks=8,
        micro_batch_tokens=1 << 14,
        work=Work(1.0, 1e-4),
        siblings=rows.siblings,
    )
    assert all(len(part.rows) for slices in planned for part in slices)
    assert len({len(slices[0].rows) for slices in planned}) == 1


def test_what_comes_before_a_sequence_in_its_row_changes_nothing():
    """To the last bit where the kernel allows it; here, to rounding: another first sequence."""
    import transformers

    from learner.model import Policy

    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(kind("llama"))
    policy = Policy(model.eval(), temperature=1.0, logits_chunk=1 << 20)
    rows = rows_of_lengths((60, 20, 21, 19))
    before, after = [], []
    for change, into in ((0, before), (1, after)):
        for index in (1, 2, 3):
            rows.tokens[index][:4] += change * (index != 3)
        batch = collate(rows, rows.trains_NT, np.arange(4), CPU, work=Work(1.0, 1e-6))
        assert batch.places_ST is not None
        into.append(ask(policy, batch, 100)[0].detach())
    torch.testing.assert_close(before[0][3], after[0][3], rtol=1e-5, atol=1e-6)
    assert not torch.equal(before[0][1], after[0][1])


def test_models_that_were_not_shown_to_keep_sequences_apart_are_padded():
    import transformers as t

    for config in (t.MambaConfig(), t.OPTConfig(), t.FalconConfig(), t.RecurrentGemmaConfig()):
        assert not can_pack(config)
    assert can_pack(t.Qwen2Config())


def test_slots_stay_within_the_budget():
    rng = np.random.default_rng(0)
    for quadratic in (0.0, 1e-4, 1e-3):
        work = Work(1.0, quadratic)
        for _ in range(20):
            lengths_N = np.clip(rng.lognormal(5, 1, 200), 8, 2000).astype(int)
            for [batch] in zip(
                *balanced(lengths_N, np.arange(200), ranks=1, budget=8192, work=work), strict=True
            ):
                lengths = lengths_N[batch].tolist()
                rows = layout(lengths, work, budget=8192)
                slots = len(rows) * max(sum(lengths[i] for i in row) for row in rows)
                assert slots <= 1.2 * 8192, "a little where nothing fits"


def test_a_learner_without_packing_pads():
    from learner.config import LearnerConfig

    assert LearnerConfig().packing
    rows = rows_of_lengths((60, 3, 7))
    padded = collate(rows, rows.trains_NT, np.arange(3), CPU)
    assert padded.places_ST is None and padded.position_ids_BT is None
    assert padded.trains_ST is padded.trains_BT
