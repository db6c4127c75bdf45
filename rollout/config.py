"""Where prompts come from and how completions are sampled."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

InFlight = Literal["keep", "wait", "abort"]
"""What a pause does with completions under way: freezes them, waits for their end, ends them."""

STRICT = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class PromptConfig(BaseModel):
    model_config = STRICT

    dataset: str = ""
    """A `.jsonl`, `.parquet` or `.arrow` file, or a dataset of the Hugging Face hub by its id or
    as a folder (needs the `hub` extra)."""

    subset: str = ""
    """Which configuration of a hub dataset (GSM8K has `main`)."""

    split: str = "train"
    """Which split of a hub dataset."""

    question: str = ""
    """Column with the question: a text, or a list of chat messages; `a.b` is field b of column a.
    By default the layout is recognised (verl, SkyRL, TRL, OpenRLHF, slime, OpenAI messages, GSM8K)
    and printed."""

    answer: str = ""
    """Column with the reference answer (GSM8K's `... #### 42` is understood); recognised by
    default, like the question's."""

    source: str = ""
    """Column that says which task a row is of (verl's `data_source`); recognised by default, else
    the dataset's name."""

    template: Literal["auto", "chat", "raw"] = "auto"
    """`chat` applies the tokenizer's chat template, `raw` takes the text as it is, `auto` is `chat`
    when the tokenizer has a template."""

    system: str = ""
    """System message put before the question (chat template only)."""

    prefix: str = ""
    """Text put before every question, in the same message."""

    suffix: str = ""
    """Text added behind every question."""

    max_tokens: int = Field(default=512, ge=1)
    """Longest prompt, in tokens, the template's included."""

    too_long: Literal["error", "drop", "truncate"] = "error"
    """What happens to a longer one: stop and say so, leave it out, or cut its beginning. What was
    dropped or cut is counted and printed."""

    shuffle: bool = True
    """A new order in every epoch, decided by `seed`; otherwise the file's."""


class SamplingConfig(BaseModel):
    model_config = STRICT

    temperature: float = Field(default=1.0, gt=0)
    """Logits are divided by it, in the sampler and in the learner alike."""

    top_p: float = Field(default=1.0, gt=0, le=1)
    """Sample among the likeliest tokens that hold this much probability together."""

    top_k: int = Field(default=0, ge=0)
    """Sample among this many likeliest tokens; 0 is all."""

    max_tokens: int = Field(default=512, ge=1)
    """Longest completion, in tokens."""

    stop_token_ids: list[int] = []
    """Tokens that end a completion, besides those of the model's generation config."""

    stop: list[Annotated[str, Field(min_length=1)]] = []
    """Texts that end a completion, and stay in it: `["</answer>"]` for a model that has not learned
    to end its turn. vLLM looks for them in what it can decode, so not behind broken UTF-8."""

    @property
    def samples_all_tokens(self) -> bool:
        """No token is cut off before sampling, so the recorded logprobs are the model's own."""
        return self.top_p == 1 and self.top_k == 0


class SamplerConfig(BaseModel):
    model_config = STRICT

    replicas: int = Field(default=1, ge=1)
    """vLLM engines, each in an actor of its own."""

    max_replicas: int = Field(default=0, ge=0)
    """Where this is more than `replicas`, samplers join a run under way, up to as many, as soon as
    the Ray cluster has room for them."""

    tensor_parallel: int = Field(default=1, ge=1)
    """Devices per engine."""

    group_size: int = Field(default=8, ge=1)
    """Completions per prompt."""

    sampling: SamplingConfig = SamplingConfig()

    max_model_len: int = Field(default=0, ge=0)
    """Longest prompt and completion together; 0 takes `prompts.max_tokens + sampling.max_tokens`.
    """

    max_running: int = Field(default=64, ge=1)
    """Completions that one engine decodes at the same time."""

    keep_kv: bool = False
    """Completions under way at an update keep the keys and values that older weights computed. By
    default they are computed anew."""

    engine: dict[str, Any] = {}
    """Passed to vLLM's EngineArgs untouched, last."""
