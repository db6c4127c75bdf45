"""`python -m cluster data check|preview FILE`: what a dataset holds, before anything is spent.

`check` reads every row: layout, lengths, special tokens, reference answers that the verifiers can
score. `preview` shows one row as the model will see it, token by token, and scores a sample.
"""

import itertools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster import scoring
from cluster.config import RunConfig, load
from cluster.inputs import load_tokenizer
from rewards import Attempt, Score
from rewards.config import RewardConfig
from rewards.scorer import Scorer
from rollout import Prompt
from rollout.prompts import PromptStream

BARS = 10
SCORED_ROWS = 200
WIDTH = 40
SAID = "Zq7x"
"""An answer that no template has in its own text."""


def settings(file: Path, recipes: Sequence[str], overrides: Sequence[str]) -> RunConfig:
    """A run's configuration with this file as its dataset."""
    return load(recipes, [*overrides, f"prompts.dataset={file}"]).config


def check(file: Path, recipes: Sequence[str], overrides: Sequence[str]) -> int:
    """Prints what was found; the number of warnings."""
    config = settings(file, recipes, overrides)
    notes = scoring.check(config.rewards)
    tokenizer, stream = _read(config)
    prompts = list(stream)
    print(f"{file}: {stream.report}")
    print(stream.layout)
    sources = Counter(prompt.source for prompt in prompts)
    if len(sources) > 1:
        print("sources: " + ", ".join(f"{name} {count}" for name, count in sources.most_common(8)))
    unit = "tokens" if config.model.path else "characters (model.path=... counts tokens)"
    print(f"prompt length in {unit}:")
    print(histogram([len(p.token_ids) for p in prompts]))
    warnings = list(_warnings(config, tokenizer, stream, prompts))
    for note in notes:
        print(note)
    warnings += _self_check(config, prompts[:SCORED_ROWS])
    for warning in warnings:
        print(f"warning: {warning}")
    print(f"{len(warnings)} warnings" if warnings else "nothing to warn of")
    return len(warnings)


def preview(file: Path, recipes: Sequence[str], overrides: Sequence[str], row: int) -> None:
    """Prints one row. Raises ValueError when there is no such row."""
    config = settings(file, recipes, overrides)
    tokenizer, stream = _read(config)
    prompt = next(itertools.islice(stream, row, None), None)
    if prompt is None or row < 0:
        raise ValueError(f"{file} has {len(stream)} rows, no row {row}")
    print(f"{prompt.id} of {file} ({stream.layout})")
    print(f"prompt ({len(prompt.text)} characters):\n{prompt.text}")
    if config.model.path:
        print(f"token ids ({len(prompt.token_ids)}; special ones in [[ ]]):")
        print(marked(tokenizer, prompt.token_ids.tolist()))
    print(f"answer: {prompt.answer[:500]!r}")
    print(f"source: {prompt.source}")
    if prompt.extra:
        print(f"columns for reward functions: {', '.join(sorted(prompt.task().extra))}")
    print("scored samples:")
    samples = [prompt.answer, "I do not know."] if functions_only(config).verifiers else []
    scores = _score(config, [prompt], samples)[0] if samples else []
    for text, score in zip(samples, scores, strict=True):
        shown = f"{score.reward:g}" if score.reward is not None else "none"
        parts = ", ".join(f"{name} {value:g}" for name, value in score.parts.items())
        note = f" ({score.note})" if score.note else ""
        print(f"  {text[:60]!r}: {score.outcome}, reward {shown}; {parts}{note}")


def marked(tokenizer: Any, ids: Sequence[int]) -> str:
    """Ids with their text, special tokens in double brackets: `[[2 <|user|>]] 17 'What'`."""
    special = set(tokenizer.all_special_ids)
    pieces = (
        f"[[{i} {tokenizer.convert_ids_to_tokens(i)}]]"
        if i in special
        else f"{i} {tokenizer.decode([i])!r}"
        for i in ids
    )
    return " ".join(pieces)


def histogram(lengths: Sequence[int]) -> str:
    """Ten bars of equal width, and the figures that people ask for."""
    low, high = min(lengths), max(lengths)
    width = max((high - low) // BARS + 1, 1)
    bars = Counter((length - low) // width for length in lengths)
    most = max(bars.values())
    lines = [
        f"  {low + bar * width:>6} - {low + (bar + 1) * width - 1:<6} "
        f"{'#' * max(round(WIDTH * bars[bar] / most), bars[bar] > 0):<{WIDTH}} {bars[bar]}"
        for bar in range(max(bars) + 1)
    ]
    ordered = sorted(lengths)
    figures = ", ".join(
        f"{name} {ordered[min(int(share * len(ordered)), len(ordered) - 1)]}"
        for name, share in (("median", 0.5), ("90 %", 0.9), ("99 %", 0.99), ("longest", 1.0))
    )
    return "\n".join([*lines, f"  {figures}"])


class _Characters:
    """Stands in for a tokenizer where no model is named: one token per character."""

    chat_template = "yes"

    def apply_chat_template(self, messages: list[dict[str, str]], **_: Any) -> str:
        return "\n".join(f"{m['role']}: {m['content']}" for m in messages)

    def __call__(self, texts: list[str], **_: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [[0] * len(text) for text in texts]}


def _read(config: RunConfig) -> tuple[Any, PromptStream]:
    whole = config.prompts.model_copy(update={"max_tokens": 1 << 40})  # to see the long ones, too
    if not config.model.path:
        return None, PromptStream(whole, _Characters(), seed=0)
    tokenizer = load_tokenizer(config.model.path)
    return tokenizer, PromptStream(whole, tokenizer, seed=0)


def _warnings(
    config: RunConfig, tokenizer: Any, stream: PromptStream, prompts: list[Prompt]
) -> Any:
    longest = config.prompts.max_tokens
    long = sum(len(prompt.token_ids) > longest for prompt in prompts) if tokenizer else 0
    if long:
        yield (
            f"{long} prompts are longer than prompts.max_tokens={longest}; prompts.too_long="
            f"{config.prompts.too_long} decides what becomes of them"
        )
    if stream.layout.answer is None:
        yield "there is no column of answers: only verifiers that need none can score this"
    twice = len(prompts) - len({prompt.text for prompt in prompts})
    if twice:
        yield f"{twice} prompts stand there more than once"
    if tokenizer is None:
        return
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    doubled = sum(p.token_ids[:2].tolist() == [bos, bos] for p in prompts if bos is not None)
    if doubled:
        yield f"{doubled} prompts begin with two BOS tokens: the template writes one by itself"
    if eos is None:
        yield "the tokenizer has no EOS token: completions end at max_tokens only"
    if tokenizer.chat_template and config.prompts.template != "raw":
        messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": SAID}]
        whole = tokenizer.apply_chat_template(messages, tokenize=False)
        closing = tokenizer(whole.rpartition(SAID)[2], add_special_tokens=False)["input_ids"]
        stops = {eos, *config.sampler.sampling.stop_token_ids}
        if closing and not stops & set(closing):
            shown = marked(tokenizer, closing)
            yield (
                f"the template ends an answer with {shown}, which stops nothing (EOS is {eos}): "
                "add its id to sampler.sampling.stop_token_ids"
            )
        opened = tokenizer.apply_chat_template(
            messages[:1], tokenize=False, add_generation_prompt=True
        )
        if opened == tokenizer.apply_chat_template(messages[:1], tokenize=False):
            yield "the chat template has no generation prompt: the model may write the user's turn"


def _self_check(config: RunConfig, prompts: list[Prompt]) -> list[str]:
    """Score the reference answers as if they were completions: whatever is unscorable now will be
    unscorable in training."""
    asked = functions_only(config).verifiers
    for name in config.rewards.verifiers:
        if name not in asked:
            print(f"verifier {name} is a service: it is not asked here")
    if not asked:
        return []
    scores = [score for [score] in _score(config, prompts, None)]
    failed = [
        (p.id, s.note) for p, s in zip(prompts, scores, strict=True) if s.outcome == "unscorable"
    ]
    first = next(iter(asked))
    full = sum(score.parts.get(first, 0.0) >= 1 for score in scores)
    print(f"reference answers, scored as completions: {first} gives {full} of {len(scores)} 1.0")
    if not failed:
        return []
    return [f"{len(failed)} of {len(scores)} rows are unscorable; {failed[0][0]}: {failed[0][1]}"]


def functions_only(config: RunConfig) -> RewardConfig:
    """Without the services."""
    services = scoring.services_of(config.rewards)
    functions = {n: v for n, v in config.rewards.verifiers.items() if n not in services}
    return config.rewards.model_copy(update={"verifiers": functions})


def _score(
    config: RunConfig, prompts: list[Prompt], texts: Sequence[str] | None
) -> list[list[Score]]:
    """Scores of the texts (the prompt's own answer by default) under each prompt."""
    scorer = Scorer(functions_only(config), config.sampler.sampling.max_tokens)
    try:
        return [
            scorer.score(
                prompt.task(),
                [
                    Attempt(text=text, num_tokens=0, truncated=False)
                    for text in ([prompt.answer] if texts is None else texts)
                ],
            )
            for prompt in prompts
        ]
    finally:
        scorer.close()
