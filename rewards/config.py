"""What a reward is made of and how long it may take."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

STRICT = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class VerifierConfig(BaseModel):
    """One verifier: its weight, what it uses, and its own options under their own names."""

    model_config = ConfigDict(frozen=True, extra="allow", use_attribute_docstrings=True)

    weight: float = 1.0
    """Of its value in the reward; 0 only logs it."""

    use: str = ""
    """A built-in name, `module:function`, `file.py:function`, or a service (`reward_model`, `http`,
    `judge`); by default the name under which it is listed."""

    @property
    def options(self) -> dict[str, Any]:
        return self.model_extra or {}


class RewardConfig(BaseModel):
    model_config = STRICT

    verifiers: dict[str, VerifierConfig] = Field(
        default={"number": VerifierConfig()}, min_length=1, validate_default=True
    )
    """What judges a completion: `name: weight`, or `name: {weight: 1.0, use: ..., option: ...}`
    (docs/rewards.md lists the built-in ones, their options, and the forms of functions of your
    own). The reward is the weighted sum; every part is also logged by itself."""

    truncated: Literal["score", "zero"] = "score"
    """What a completion that was cut at `max_tokens` is worth: scored like any other, or 0 on
    every part."""

    overlong_buffer: int = Field(default=0, ge=0)
    """Tokens before `max_tokens` over which a penalty grows; 0 is no penalty (DAPO's soft overlong
    punishment)."""

    overlong_penalty: float = Field(default=1.0, ge=0)
    """The penalty at `max_tokens`, taken from the reward; part `overlong` in the metrics."""

    scorers: int = Field(default=1, ge=1)
    """Reward actors. Each scores two groups at a time (more when some take long), in children that
    can be killed."""

    timeout: float = Field(default=10.0, gt=0)
    """Seconds that one completion may take to score. Beyond it the child is killed and the
    completion gets 0, outcome `timeout`."""

    memory_gib: float = Field(default=4.0, gt=0)
    """Address space that a scoring child may map, in GiB."""

    allow_unsandboxed_code: bool = False
    """Run programs of the model without a sandbox where this machine gives none. The run is marked.
    """

    max_unscorable: float = Field(default=0.5, gt=0, le=1)
    """Share of a step's completions that may be unscorable; beyond it the run stops."""

    @field_validator("verifiers", mode="before")
    @classmethod
    def _weights(cls, value: Any) -> Any:
        """`name: 0.5` is `name: {weight: 0.5}`."""
        if not isinstance(value, dict):
            return value
        numbers = (int, float, str)
        return {k: {"weight": v} if isinstance(v, numbers) else v for k, v in value.items()}

    @property
    def weights(self) -> dict[str, float]:
        return {name: verifier.weight for name, verifier in self.verifiers.items()}
