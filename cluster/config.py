"""The run's configuration: one tree, each branch owned by the package that uses it.

YAML files first, left to right, then dotted overrides; nothing else: no environment variables, no
interpolation. Unknown keys are refused. `"auto"` values are resolved once, by `cluster/device.py`.
"""

import difflib
import functools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from learner.config import LearnerConfig, ModelConfig
from rewards.config import RewardConfig
from rollout.config import InFlight, PromptConfig, SamplerConfig

STRICT = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class ScheduleConfig(BaseModel):
    model_config = STRICT

    groups_per_step: int = Field(default=32, ge=1)
    """Prompts of one optimizer step."""

    max_staleness: int = Field(default=0, ge=0)
    """How many versions older than the policy that trains on it a group's oldest token may be.
    0 is synchronous, 1 one-step-off, n asynchronous."""

    in_flight: InFlight = "keep"
    """What becomes of unfinished completions when new weights come: they go on under the new ones,
    the update waits until they have ended, or they are begun anew."""

    uniform_groups: Literal["train", "discard"] = "train"
    """What becomes of groups whose completions all have the same reward: they are trained, which
    teaches nothing where siblings are compared, or another prompt takes their place at once
    (dynamic sampling)."""

    parts: int = Field(default=1, ge=1)
    """Parts in which the learner gets a step's groups: it asks its models about one (recomputed
    anchor, reference, critic) while the next are still sampled. The update is one all the same."""

    max_group_size: int = Field(default=0, ge=0)
    """A prompt whose completions all have the same reward so far gets `sampler.group_size` more,
    until two differ or it has this many. 0: no more than the first."""

    max_discards: int = Field(default=10, ge=1)
    """Steps' worth of groups that may be discarded one after another before the run stops."""

    spare_groups: int = Field(default=0, ge=0)
    """Prompts begun beside those of a synchronous step. The step trains the groups that are ready
    first; the others are sampled anew for the next one, and none more than three times."""


class ClusterConfig(BaseModel):
    model_config = STRICT

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes GPUs when the Ray cluster has any."""

    address: str = "auto"
    """Ray cluster to join. `auto` joins the one this job was submitted to, or starts one of its own
    on this machine; `local` always starts one; otherwise host:port."""

    weight_backend: Literal["auto", "shm", "ray", "gloo", "nccl", "ipc"] = "auto"
    """How weights reach the samplers: a memory-mapped file, Ray's object store (and only what
    changed of them), NCCL (gloo is the same way between CPUs, to prove it: samplers pause for the
    whole push), or CUDA IPC. `auto` takes NCCL for GPUs; else the file where the run
    starts a Ray of its own, and the object store where it joins a cluster."""

    weight_directory: str = "/dev/shm"
    """Folder of the memory-mapped file; learner rank 0 and all samplers must share it."""

    port: int = Field(default=0, ge=0, le=65535)
    """Port on which learner rank 0 gathers the other ranks; 0 takes a free one."""

    canary_bound: float | None = Field(default=None, gt=0)
    """Largest logprob gap between learner and sampler after a publish; beyond it the run stops.
    By default 1e-3 in float32 and 0.5 in bfloat16."""

    start_timeout: float = Field(default=600.0, gt=0)
    """Seconds for all actors to be placed and ready."""

    step_timeout: float = Field(default=1800.0, gt=0)
    """Seconds for any one phase of a step: groups to arrive, an update, a publish, a save."""

    heartbeat_timeout: float = Field(default=60.0, gt=0)
    """Seconds that a sampler, scorer or learner rank may give no sign of life; then it is killed
    and replaced like one that died."""

    sampler_restarts: int = Field(default=20, ge=0)
    """How many samplers of a run may be replaced. Beyond, it goes on with those that are left."""

    start_restarts: int = Field(default=2, ge=0)
    """How often all actors may be made again because one died or froze while a run started; what
    dies of its recipe dies each time."""

    learner_restarts: int = Field(default=5, ge=0)
    """How many times in a run the learner's ranks may start again; then the run ends."""


class EvalConfig(BaseModel):
    model_config = STRICT

    dataset: str = ""
    """Held-out prompts, read with the same columns and template as the training prompts. Empty:
    no evaluation."""

    subset: str = ""
    """Which configuration of a hub dataset; empty is `prompts.subset`, where the dataset is the
    same."""

    split: str = "test"
    """Which split of a hub dataset."""

    every: int = Field(default=10, ge=1)
    """Steps between evaluations. Step 0 and the last step are always evaluated."""

    prompts: int = Field(default=256, ge=1)
    """How many of the held-out prompts, from the first."""

    samples: int = Field(default=1, ge=1)
    """Completions per prompt; with one, decoding is greedy."""

    temperature: float = Field(default=1.0, gt=0)
    """Of sampling when `samples` is above 1."""

    top_p: float = Field(default=1.0, gt=0, le=1)
    """Of sampling when `samples` is above 1."""

    max_tokens: int = Field(default=0, ge=0)
    """Longest completion; 0 takes `sampler.sampling.max_tokens`."""


class CheckpointConfig(BaseModel):
    model_config = STRICT

    every: int = Field(default=50, ge=0)
    """Steps between checkpoints; the last step is always saved. 0 saves the last step only."""

    keep: int = Field(default=2, ge=1)
    """Newest checkpoints kept. The one with the best evaluation is kept besides."""

    keep_every: int = Field(default=0, ge=0)
    """Checkpoints of steps that this divides are never deleted. 0: none are spared."""

    grace: float = Field(default=20.0, ge=0)
    """Seconds for a last checkpoint when SIGTERM or Ctrl-C ends the run. Without one nothing is
    lost either: what was trained since the one before is replayed from the recorded tables."""

    reshard: bool = False
    """Let a run go on with another `learner.ranks` or `learner.zero.stage`. Its sums are then taken
    in another order: equal up to rounding."""

    resume: Literal["auto", "never"] = "auto"
    """`auto` goes on from the run folder's newest complete checkpoint; `never` refuses a run folder
    that is already in use."""


class LoggingConfig(BaseModel):
    model_config = STRICT

    trackers: list[Literal["tensorboard", "wandb", "mlflow", "trackio"]] = ["tensorboard"]
    """Where metrics go besides `metrics.jsonl` and Prometheus, which always have them. All but
    TensorBoard are installed by you and take their addresses and keys from the environment, as
    they always do."""

    aliases: Literal["", "trl", "verl"] = ""
    """Write metrics under that system's names, too, as far as it has one."""

    keep_rollouts: bool = True
    """Keep each step's table under `rollouts/`. Without them there is no replay."""

    progress: Literal["auto", "line", "plain"] = "auto"
    """A live line on a terminal, plain lines elsewhere."""


class RunConfig(BaseModel):
    """Everything that decides a run."""

    model_config = STRICT

    name: str = Field(default="run", pattern=r"^\w[\w.-]*(/\w[\w.-]*)*$")
    """The run folder is `<output_dir>/<name>`."""

    seed: int = Field(default=1, ge=0)
    """Decides the order of prompts and the seed of every completion."""

    steps: int = Field(default=100, ge=1)
    """Optimizer steps."""

    output_dir: str = "outputs"
    """Where run folders are made. Inside a Ray job, a relative path is taken from the home folder
    of the machine that runs the driver, since the job's own folder is deleted."""

    prepare: str = ""
    """`module:function` called with this config before anything is checked; it may make files and
    returns the config to run with them, and figures to show in the result."""

    model: ModelConfig = ModelConfig()
    prompts: PromptConfig = PromptConfig()
    sampler: SamplerConfig = SamplerConfig()
    rewards: RewardConfig = RewardConfig()
    learner: LearnerConfig = LearnerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    cluster: ClusterConfig = ClusterConfig()
    eval: EvalConfig = EvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    logging: LoggingConfig = LoggingConfig()

    @property
    def folder(self) -> Path:
        return Path(self.output_dir) / self.name

    @property
    def max_model_len(self) -> int:
        return self.sampler.max_model_len or self._longest

    @property
    def _longest(self) -> int:
        """The longest prompt and completion together that the limits allow."""
        evaluated = self.eval.max_tokens if self.eval.dataset else 0
        return self.prompts.max_tokens + max(self.sampler.sampling.max_tokens, evaluated)

    @property
    def is_supervised(self) -> bool:
        """The data are demonstrations; nothing is sampled for training."""
        from learner.algorithms import build

        return build(self.learner.algorithm).supervised

    def check(self) -> None:
        """The rules between fields. Raises ValueError with one sentence per broken rule."""
        from learner.rules import contradictions

        rows = self.schedule.groups_per_step
        rows *= 1 if self.is_supervised else self.sampler.group_size
        broken = contradictions(
            self.learner,
            group_size=self.sampler.group_size,
            groups_per_step=self.schedule.groups_per_step,
            samples_all_tokens=self.sampler.sampling.samples_all_tokens,
            has_adapters=self.model.lora.rank > 0,
        )
        buffer, longest = self.rewards.overlong_buffer, self.sampler.sampling.max_tokens
        if buffer >= longest:
            broken.append(
                f"rewards.overlong_buffer={buffer} leaves nothing unpunished of "
                f"sampler.sampling.max_tokens={longest}: make it smaller"
            )
        if self.max_model_len < self._longest:
            broken.append(
                f"sampler.max_model_len={self.max_model_len} is less than prompts.max_tokens + the "
                "longer of sampler.sampling.max_tokens and eval.max_tokens = "
                f"{self._longest}: raise it"
            )
        broken += self._broken_schedule()
        if rows % self.learner.ranks:
            broken.append(
                f"{rows} rows per step (schedule.groups_per_step x sampler.group_size) do not "
                f"divide by learner.ranks={self.learner.ranks}"
            )
        if broken:
            raise ValueError("\n".join(broken))

    def _broken_schedule(self) -> list[str]:
        from learner.algorithms import build

        schedule, broken = self.schedule, []
        if schedule.spare_groups and schedule.max_staleness:
            broken.append(
                f"schedule.spare_groups={schedule.spare_groups} is for synchronous steps: with "
                f"schedule.max_staleness={schedule.max_staleness} more groups than a step's are "
                "under way anyway; set one of them to 0"
            )
        if schedule.spare_groups and schedule.in_flight != "abort":
            broken.append(
                f"schedule.spare_groups={schedule.spare_groups} needs schedule.in_flight=abort: "
                "what is left of a step is sampled anew, or it would not be on-policy"
            )
        algorithm, row = self.learner.algorithm, build(self.learner.algorithm)
        asks = algorithm.kl.coef or row.critic or algorithm.anchor == "recomputed"
        asks = asks or self.learner.record_logprobs
        if schedule.parts > 1 and (row.supervised or not asks):
            broken.append(
                f"schedule.parts={schedule.parts} has no use: the learner asks no model about the "
                "table before its update (anchor=recomputed, kl.coef or a critic would); set it "
                "to 1"
            )
        if schedule.parts > 1 and schedule.spare_groups:
            broken.append(
                f"schedule.parts={schedule.parts}: with schedule.spare_groups nobody knows before "
                "the last group which of them a step trains; set one of them to its default"
            )
        if schedule.parts > schedule.groups_per_step:
            broken.append(
                f"schedule.parts={schedule.parts} is more than schedule.groups_per_step="
                f"{schedule.groups_per_step}: lower it"
            )
        if self.sampler.keep_kv and schedule.in_flight != "keep":
            broken.append(
                f"sampler.keep_kv is for completions that go on, and schedule.in_flight="
                f"{schedule.in_flight} leaves none: set it to keep, or keep_kv=false"
            )
        if schedule.uniform_groups == "discard" and not row.compares_siblings:
            broken.append(
                f"schedule.uniform_groups=discard: {self.learner.algorithm.name} learns from "
                "groups with uniform rewards as well; use train"
            )
        size, most = self.sampler.group_size, schedule.max_group_size
        if most and (most <= size or most % size):
            broken.append(
                f"schedule.max_group_size={most} is no multiple of sampler.group_size={size} above "
                "it: a group grows by whole rounds; set 0 for none"
            )
        if most and not row.compares_siblings:
            broken.append(
                f"schedule.max_group_size={most}: {self.learner.algorithm.name} does not compare "
                "the completions of a prompt, so more of them add no signal; set it to 0"
            )
        return broken

    def deciding(self) -> dict[str, Any]:
        """What decides the numbers: all fields but those that may change between a run and its
        continuation. Resuming with others is refused."""
        run = ("output_dir", "name", "steps", "prepare")
        exact = (
            *run,
            "sampler.max_replicas",
            "learner.max_skipped_steps",
            "learner.record_logprobs",
        )
        branches = ("checkpoint.", "logging.", "cluster.", "eval.")
        deciding = {
            key: value
            for key, value in flatten(self.model_dump(mode="json"))
            if key not in exact and not key.startswith(branches)
        }
        # A decaying learning rate depends on the length of the run; otherwise more steps change
        # nothing that was.
        if self.learner.optim.final_lr_fraction < 1:
            deciding["steps"] = self.steps
        return deciding


def flatten(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """("learner.optim.lr", 1e-6), ... Tables that users fill themselves stay whole."""
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and name not in OPEN_TABLES:
            yield from flatten(value, f"{name}.")
        else:
            yield name, value


OPEN_TABLES = ("rewards.verifiers", "sampler.engine", "learner.deepspeed")
"""Options that are tables with keys of the user's own."""


OTHER_NAMES = {
    "learning_rate": "lr",
    "num_generations": "group_size",
    "n_samples_per_prompt": "group_size",
    "beta": "coef",
    "max_grad_norm": "clip_norm",
    "max_completion_length": "max_tokens",
    "max_prompt_length": "max_tokens",
    "max_steps": "steps",
    "epsilon": "clip_low",
    "epsilon_high": "clip_high",
    "loss_type": "reduction",
    "num_gpus": "ranks",
    "adv_estimator": "name",
    "advantage_estimator": "name",
    "num_iterations": "epochs",
    "ppo_epochs": "epochs",
    "scale_rewards": "scale",
    "delta": "dual_clip",
    "clip_ratio_c": "dual_clip",
    "importance_sampling_level": "level",
    "mask_truncated_completions": "mask_truncated",
    "cliprange_value": "clip",
    "kl_estimator": "estimator",
}
"""What other systems call some of our options; used for suggestions only."""


class Loaded:
    """A config and where each value came from."""

    def __init__(self, config: RunConfig, origins: dict[str, str]) -> None:
        self.config = config
        self.origins = origins

    def plan(self) -> str:
        """Every option with its value and origin, for `--dry-run`."""
        rows = list(flatten(self.config.model_dump(mode="json")))
        width = max(len(key) for key, _ in rows)
        return "\n".join(
            f"{key:<{width}}  {json.dumps(value):<28}  {self._origin(key, value)}"
            for key, value in rows
        )

    def _origin(self, key: str, value: Any) -> str:
        """What nobody set and is no default came with the preset."""
        preset = self.config.learner.algorithm.preset
        came_along = preset and key in options() and value != options()[key][1]
        return self.origins.get(key, f"preset {preset}" if came_along else "default")


def load(files: Sequence[str], overrides: Sequence[str] = (), *, key: str = "") -> Loaded:
    """Layer YAML files left to right, then `a.b=value` overrides (a leading `--` is allowed).
    With `key`, the options are found under it in each file.

    Raises ValueError for a file that is missing or no mapping, an unknown option, or a value of the
    wrong kind.
    """
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for file in files:
        content = _read_yaml(file)
        for name, value in flatten(content[key] if key else content):
            _set(values, origins, name, value, file)
    for override in overrides:
        name, equals, text = override.removeprefix("--").partition("=")
        if not equals:
            raise ValueError(f"{override!r} is neither a YAML file nor an override like a.b=1")
        value = _parse(name, text)
        tree = isinstance(value, dict) and not name.startswith(OPEN_TABLES)
        for inner, part in flatten(value, f"{name}.") if tree else [(name, value)]:
            _set(values, origins, inner, part, "command line")
    try:
        return Loaded(RunConfig.model_validate(values), origins)
    except ValidationError as error:
        raise ValueError("\n".join(_explain(item, origins) for item in error.errors())) from None


def _read_yaml(file: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(Path(file).read_text(encoding="utf-8")) or {}
    except FileNotFoundError:
        raise ValueError(f"recipe {file!r}: no such file (looked in {Path.cwd()})") from None
    except (yaml.YAMLError, UnicodeDecodeError, IsADirectoryError) as error:
        raise ValueError(f"recipe {file!r} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"recipe {file!r} must be a mapping of options, not a {type(content)}")
    return content


def _parse(name: str, text: str) -> Any:
    """The value of an override. What is declared as a text stays one, whatever it looks like."""
    if not text or options().get(name, ("",))[0] == "str":
        return text
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"the value of {name} is not YAML: {text!r}") from error


def _number(value: Any) -> Any:
    """YAML 1.1 reads 1e-4 as a text; people mean the number."""
    if isinstance(value, str) and value.strip()[:1] in tuple("0123456789.+-"):
        try:
            return float(value)
        except ValueError:
            return value
    return value


@functools.cache
def options() -> dict[str, tuple[str, Any, str]]:
    """Every option: its type, default and documentation."""
    return dict(_options(RunConfig, ""))


def _options(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, tuple[str, Any, str]]]:
    for name, field in model.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from _options(annotation, f"{prefix}{name}.")
        else:
            kind = annotation.__name__ if isinstance(annotation, type) else str(annotation)
            kind = kind.replace("typing.", "")
            default = field.get_default(call_default_factory=True)
            yield f"{prefix}{name}", (kind, default, (field.description or "").replace("\n", " "))


def _set(
    values: dict[str, Any], origins: dict[str, str], key: str, value: Any, origin: str
) -> None:
    known = options()
    table = next((t for t in OPEN_TABLES if key.startswith(f"{t}.")), None)
    if key not in known and table is None:
        raise ValueError(f"{origin}: {key} is not an option{_suggest(key, list(known))}")
    path = [*table.split("."), key[len(table) + 1 :]] if table else key.split(".")
    node = values
    for part in path[:-1]:
        node = node.setdefault(part, {})
    is_text = key in known and known[key][0] == "str"
    node[path[-1]] = value if is_text else _number(value)
    origins[table or key] = origin


def _suggest(key: str, known: list[str]) -> str:
    """ "; did you mean learner.optim.lr?" By another system's name for it, else by the whole path,
    else by its last word alone."""
    branch, _, last = key.rpartition(".")
    same_word = [k for k in known if k.rpartition(".")[2] == OTHER_NAMES.get(last)]
    # Of several options of that name, the one that stands nearest to where it was looked for.
    nearness = {k: difflib.SequenceMatcher(None, k, key).ratio() for k in same_word}
    close = sorted(same_word, key=nearness.__getitem__, reverse=True)[:1]
    close = close or difflib.get_close_matches(key, known, n=1, cutoff=0.75)
    if not close:
        by_last: dict[str, str] = {}
        for option in known:
            by_last.setdefault(option.rpartition(".")[2], option)
        words = difflib.get_close_matches(last, list(by_last), n=1, cutoff=0.6)
        same_branch = [k for k in known if k.rpartition(".")[0] == branch]
        close = [by_last[words[0]]] if words else []
        if not close and same_branch and branch:
            names = ", ".join(k.rpartition(".")[2] for k in same_branch)
            return f"; {branch} has {names}"
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"{hint} (`python -m cluster options` lists all)"


def _explain(item: Any, origins: dict[str, str]) -> str:
    if item["type"] == "value_error":  # a rule of ours: its sentence says which option
        return str(item["ctx"]["error"])
    key = ".".join(str(part) for part in item["loc"])
    origin = origins.get(key, "default")
    return f"{origin}: {key}={item['input']!r}: {item['msg']}"
