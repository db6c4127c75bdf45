"""What a run reads, checked before anything heavy starts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster import scoring
from cluster.config import RunConfig
from cluster.ledger import Recording
from rollout import Prompt, ScoredGroup
from rollout.demonstrations import DemonstrationStream
from rollout.prompts import PromptStream

CANARY_TOKENS = 64


@dataclass(frozen=True)
class Inputs:
    prompts: PromptStream | None
    """Sampled from; None when the groups are given."""
    given: DemonstrationStream | Recording | None
    """Groups that need no sampling."""
    held_out: list[Prompt]
    canary: list[int]
    """Tokens that learner and samplers both score after each publish."""
    fingerprint: str
    notes: list[str]
    """What was found, for people."""
    tokenizer: Any

    @property
    def needs_samplers(self) -> bool:
        return self.prompts is not None or bool(self.held_out)

    def group(self, ticket: int) -> ScoredGroup:
        if self.given is None:
            raise RuntimeError("this run samples its groups")
        return self.given.at(ticket)


def read(config: RunConfig, *, replay: Path | None = None, held_out_only: bool = False) -> Inputs:
    """Load tokenizer and datasets. Raises ValueError for anything that is missing or unfit."""
    tokenizer = load_tokenizer(config.model.path)
    if config.learner.critic.path:
        _must_exist(config.learner.critic.path, "learner.critic.path")
    notes = scoring.check(config.rewards, grows=config.schedule.max_group_size > 0)
    prompts = given = None
    fingerprint = ""
    if held_out_only:
        pass
    elif replay is not None:
        given = Recording(replay, config.schedule.groups_per_step)
        if given.steps < config.steps:
            raise ValueError(
                f"--replay {replay} holds {given.steps} steps, the recipe has "
                f"steps={config.steps}: add steps={given.steps}"
            )
        notes.append(f"replay: {given.steps} recorded steps of {replay}")
        fingerprint = str(replay)
    elif config.is_supervised:
        given = DemonstrationStream(config.prompts, tokenizer)
        notes.append(f"train: {len(given)} demonstrations")
        fingerprint = given.fingerprint
    else:
        check_length(config)
        prompts = PromptStream(config.prompts, tokenizer, seed=config.seed)
        notes.append(f"train: {prompts.report} ({prompts.layout})")
        fingerprint = prompts.fingerprint
    held_out: list[Prompt] = []
    if config.eval.dataset and replay is None:
        of = config.eval
        same = of.dataset == config.prompts.dataset
        subset = of.subset or (config.prompts.subset if same else "")
        fields = {"dataset": of.dataset, "subset": subset, "split": of.split}
        evaluation = PromptStream(
            config.prompts.model_copy(update=fields), tokenizer, seed=0, limit=config.eval.prompts
        )
        held_out = list(evaluation)
        notes.append(f"held out: {evaluation.report}")
    return Inputs(
        prompts=prompts,
        given=given,
        held_out=held_out,
        canary=_canary(config, prompts, held_out),
        fingerprint=fingerprint,
        notes=notes,
        tokenizer=tokenizer,
    )


def load_tokenizer(path: str) -> Any:
    """Raises ValueError when there is no model at `path`."""
    if not path:
        raise ValueError(
            "model.path is not set: a folder with a Hugging Face checkpoint, or a hub id"
        )
    _must_exist(path, "model.path")
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise ValueError(f"model.path={path!r} holds no model and tokenizer: {first}") from error


def check_length(config: RunConfig) -> None:
    """Raises ValueError when the model has too few positions for the longest prompt and completion.
    Whether positions that are stretched reach is vLLM's to judge."""
    from transformers import AutoConfig

    try:
        model = AutoConfig.from_pretrained(config.model.path).get_text_config()
    except (OSError, ValueError):  # said by whoever loads it
        return
    positions = getattr(model, "max_position_embeddings", None)
    stretched = "factor" in str(getattr(model, "rope_parameters", None))
    if not positions or stretched or "hf_overrides" in config.sampler.engine:
        return
    if config.max_model_len > positions:
        raise ValueError(
            f"{config.max_model_len} tokens (prompts.max_tokens + sampler.sampling.max_tokens, or "
            f"sampler.max_model_len) do not fit {config.model.path}, "
            f"which has max_position_embeddings={positions}: lower one of them"
        )


def _must_exist(path: str, option: str) -> None:
    """Raises ValueError for what looks like a folder and is none; a hub id is not looked up."""
    if not Path(path).is_dir() and (path.startswith((".", "/", "~")) or path.count("/") > 1):
        raise ValueError(f"{option}={path!r}: no such folder (looked in {Path.cwd()})")


def _canary(config: RunConfig, prompts: PromptStream | None, held_out: list[Prompt]) -> list[int]:
    """Tokens of the run's own prompts, end to end."""
    source = held_out or ([prompts.at(ticket) for ticket in range(8)] if prompts else [])
    tokens = [int(token) for prompt in source[:8] for token in prompt.token_ids]
    return tokens[: min(CANARY_TOKENS, config.max_model_len - 1)]
