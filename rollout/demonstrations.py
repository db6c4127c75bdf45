"""Demonstrations: completions that nobody sampled, for supervised fine-tuning.

They travel as groups of one, with reward 1, so that everything behind the sampler (table, learner,
replay) treats them like any other data.
"""

from typing import Any

import numpy as np

from rewards import Score
from rollout.config import PromptConfig
from rollout.prompts import fingerprint, read_rows
from rollout.types import NO_POLICY, Completion, Group, Prompt, ScoredGroup


class DemonstrationStream:
    """Rows of a dataset, in order, epoch after epoch: `at(ticket)` is a pure function.

    A row has `prompt` and `completion`, or `segments`: a list of `[text, trains]` pairs of which
    the first is the prompt, for conversations and for loss on parts of a text. The texts are taken
    as they are; the end-of-turn token has to stand in them.
    """

    def __init__(self, config: PromptConfig, tokenizer: Any) -> None:
        rows = read_rows(config.dataset, subset=config.subset, split=config.split)
        self._groups = [_group(config, tokenizer, number, row) for number, row in enumerate(rows)]
        self.fingerprint = fingerprint(rows)

    def __len__(self) -> int:
        return len(self._groups)

    def at(self, ticket: int) -> ScoredGroup:
        prompt, completion = self._groups[ticket % len(self._groups)]
        group = Group(ticket=ticket, prompt=prompt, completions=(completion,))
        return ScoredGroup(group=group, scores=(Score(reward=1.0, parts={}),))


def _group(
    config: PromptConfig, tokenizer: Any, number: int, row: dict[str, Any]
) -> tuple[Prompt, Completion]:
    where = f"dataset {config.dataset!r}, row {number}"
    if "segments" in row:
        try:
            segments = [(str(text), bool(trains)) for text, trains in row["segments"]]
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where}: segments is a list of [text, trains] pairs") from error
    elif isinstance(row.get("prompt"), str) and isinstance(row.get("completion"), str):
        segments = [(row["prompt"], False), (row["completion"], True)]
    else:
        raise ValueError(
            f"{where}: a demonstration has the texts prompt and completion, or segments; "
            f"found {', '.join(row)}"
        )
    encoded = tokenizer([text for text, _ in segments], add_special_tokens=False)["input_ids"]
    prompt_ids, parts = encoded[0], encoded[1:]
    if not prompt_ids or not any(
        ids and trains for ids, (_, trains) in zip(parts, segments[1:], strict=True)
    ):
        raise ValueError(f"{where}: needs a prompt and at least one token that trains behind it")
    tokens = np.concatenate([np.array(ids, dtype=np.int32) for ids in parts])
    trainable = np.concatenate(
        [np.full(len(ids), trains) for ids, (_, trains) in zip(parts, segments[1:], strict=True)]
    )
    prompt = Prompt(
        id=f"demonstration/{number}",
        token_ids=np.array(prompt_ids, dtype=np.int32),
        text=segments[0][0],
        answer="",
        source="demonstrations",
    )
    completion = Completion(
        token_ids=tokens,
        trainable=trainable,
        # Certain, to whoever wrote it; the sft row does not look at these.
        logprobs=np.zeros(len(tokens), dtype=np.float32),
        versions=np.full(len(tokens), NO_POLICY, dtype=np.int32),
        text="".join(text for text, _ in segments[1:]),
        finish_reason="stop",
    )
    return prompt, completion
