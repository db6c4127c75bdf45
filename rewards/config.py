"""What a reward is made of and how long it may take."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class RewardConfig(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    verifiers: dict[str, float] = Field(default={"number": 1.0}, min_length=1)
    """Weight of each verifier: a built-in name (`number`, `number_in_answer`, `exact`,
    `exact_in_answer`, `think_answer`, `think_number`) or your own as `module:function`. The
    reward is the weighted sum; every part is also logged by itself."""

    truncated: Literal["score", "zero"] = "score"
    """What a completion that was cut at `max_tokens` is worth: scored like any other, or 0 on
    every part."""

    overlong_buffer: int = Field(default=0, ge=0)
    """Tokens before `max_tokens` over which a penalty grows; 0 is no penalty (DAPO's soft overlong
    punishment)."""

    overlong_penalty: float = Field(default=1.0, ge=0)
    """The penalty at `max_tokens`, taken from the reward; part `overlong` in the metrics."""

    scorers: int = Field(default=1, ge=1)
    """Reward actors. Each scores one group at a time, in a child process that can be killed."""

    timeout: float = Field(default=10.0, gt=0)
    """Seconds that one completion may take to score. Beyond it the child is killed and the
    completion gets 0, flagged `timeout`."""

    memory_gib: float = Field(default=4.0, gt=0)
    """Address space that a scoring child may map, in GiB."""
