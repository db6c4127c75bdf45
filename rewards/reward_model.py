"""A learned reward: a sequence-classification model with one output."""

import time
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from rewards.score import Attempt, Task, Verdict, finite


class RewardModelConfig(BaseModel):
    """`use: reward_model`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    path: str
    """A folder with a Hugging Face sequence-classification checkpoint (`num_labels=1`), or a hub
    id."""
    batch_size: int = Field(default=16, ge=1)
    max_tokens: int = Field(default=4096, ge=1)
    """Longest prompt and completion together; of longer ones the beginning is cut."""
    device: str = ""
    """Of torch; by default the first that this process was given, else the CPU."""
    replicas: int = Field(default=1, ge=1)
    """Actors that each hold the model."""
    gpus: float = Field(default=0.0, ge=0)
    """GPUs that each asks Ray for."""


class RewardModel:
    """Heavy to make: the constructor loads the model. Raises ValueError when it is no reward model.

    The text is the dataset's own chat messages, with the completion as the assistant's, through
    the reward model's chat template where it has one; else prompt and completion end to end.
    """

    def __init__(self, config: RewardModelConfig) -> None:
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self._config = config
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(config.path)
            model = AutoModelForSequenceClassification.from_pretrained(
                config.path, use_safetensors=True
            )
        except (OSError, ValueError) as error:
            first = str(error).splitlines()[0]
            raise ValueError(f"reward model {config.path!r} cannot be loaded: {first}") from error
        if model.config.num_labels != 1:
            raise ValueError(
                f"reward model {config.path!r} has {model.config.num_labels} outputs, not one"
            )
        if self._tokenizer.pad_token_id is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        model.config.pad_token_id = self._tokenizer.pad_token_id
        self._tokenizer.truncation_side = "left"
        self._tokenizer.padding_side = "right"
        accelerator = torch.accelerator.current_accelerator()
        given = str(accelerator) if torch.accelerator.is_available() else "cpu"
        self._device = config.device or given
        self._model = model.to(self._device).eval()

    def judge(self, task: Task, attempts: Sequence[Attempt]) -> list[Verdict | None]:
        """The model's output for each attempt, longest first in batches of `batch_size`."""
        import torch

        started = time.monotonic()
        encoded = [self._tokens(task, attempt) for attempt in attempts]
        order = sorted(range(len(attempts)), key=lambda i: -len(encoded[i]))
        values = [0.0] * len(attempts)
        with torch.inference_mode():
            for at in range(0, len(order), self._config.batch_size):
                rows = order[at : at + self._config.batch_size]
                batch = self._tokenizer.pad(
                    {"input_ids": [encoded[i] for i in rows]}, return_tensors="pt"
                )
                logits = self._model(**batch.to(self._device)).logits[:, 0].float().tolist()
                for i, value in zip(rows, logits, strict=True):
                    values[i] = value
        seconds = (time.monotonic() - started) / len(attempts)
        return [finite(Verdict(value=value)).lasting(seconds) for value in values]

    def _tokens(self, task: Task, attempt: Attempt) -> list[int]:
        limit: dict[str, Any] = {"truncation": True, "max_length": self._config.max_tokens}
        if isinstance(task.prompt, list) and self._tokenizer.chat_template:
            said = {"role": "assistant", "content": attempt.text}
            text = self._tokenizer.apply_chat_template([*task.prompt, said], tokenize=False)
            return self._tokenizer(text, add_special_tokens=False, **limit)["input_ids"]
        return self._tokenizer(task.text + attempt.text, **limit)["input_ids"]
