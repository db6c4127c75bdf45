"""`python -m cluster config from-trl | from-verl | from-openrlhf FILE`: the settings of a run of
theirs as a recipe of ours, and a list of what was not translated. Best effort: it is to be read.

FILE is YAML, or a shell script with their command line: options as `--key value` or `key=value`.
"""

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from cluster.config import RunConfig, flatten
from cluster.tools.peers import (
    ALGORITHM,
    DEFAULTS,
    KL,
    KL_ESTIMATORS,
    RENAMED,
    TABLES,
    clip,
    truth,
)
from learner.algorithms import ALGORITHMS

UNFIT = (KeyError, ValueError, TypeError, IndexError, ZeroDivisionError)
"""Of a value that is not what the option takes."""


@dataclass(frozen=True, slots=True)
class Translation:
    system: str
    theirs: dict[str, Any]
    """What was said, and their defaults"""
    said: frozenset[str]
    options: dict[str, Any] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)
    """Theirs that were not translated, and why where that is known"""

    def leave(self, name: str, why: str = "") -> None:
        """Only what was said is worth a line: their defaults are no wish of the user's."""
        if name in self.said:
            self.left.append(f"{name}={self.theirs[name]!r}" + (f": {why}" if why else ""))

    def settle(self, *names: str) -> None:
        """These of theirs have an equivalent after all, together."""
        self.left[:] = [each for each in self.left if each.partition("=")[0] not in names]

    def switch(self, name: str) -> bool:
        """Of theirs, off where nobody says; what it is about says the rest."""
        self.settle(name)
        return truth(self.theirs.get(name, False))

    def drop(self, options: tuple[str, ...], why: str) -> None:
        """Ours, of those beginnings."""
        for option in [each for each in self.options if each.startswith(options)]:
            self.left.append(f"{option}={self.options.pop(option)!r}: {why}")

    def tree(self) -> dict[str, Any]:
        tree: dict[str, Any] = {}
        for option, value in self.options.items():
            *path, last = option.split(".")
            branch = tree
            for part in path:
                branch = branch.setdefault(part, {})
            branch[last] = value
        return tree

    def text(self, source: str) -> str:
        """A recipe, with what was left out, and what it still lacks, as comments at its end."""
        lines = [f"# From {self.system}'s {source}, with its numbers where none are said there."]
        lines.append(yaml.safe_dump(self.tree(), sort_keys=False).rstrip())
        lines += [f"# not translated: {each}" for each in self.left]
        try:
            RunConfig.model_validate(self.tree()).check()
        except ValueError as error:
            told = filter(None, map(str.strip, str(error).splitlines()))
            lines += [f"# to be settled: {line}" for line in told]
        return "\n".join(lines) + "\n"


def translate(system: str, path: Path) -> Translation:
    """Raises ValueError for a system or a file that is none."""
    if system not in TABLES:
        raise ValueError(f"{system!r} is none of {', '.join(TABLES)}")
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    said = read(path)
    if not said:
        raise ValueError(f"{path} has no options: YAML, or a script with --key value or key=value")
    if system == "openrlhf":
        said = {_older(name): value for name, value in said.items()}
    table, unknown = TABLES[system], {name for name, value in said.items() if _unknown(value)}
    theirs = {n: v for n, v in (DEFAULTS[system] | said).items() if n not in unknown}
    found = Translation(system, {**theirs, **said}, frozenset(said))
    found.options[f"{ALGORITHM}.preset"] = system
    # What is for one side goes over what is for both, whatever came first.
    for name in sorted(theirs, key=lambda name: (table.get(name) is not clip, name == SCALE)):
        try:
            found.options.update(table[name](theirs[name]))
        except UNFIT:
            found.leave(name)
    {"trl": _trl, "verl": _verl, "openrlhf": _openrlhf}[system](theirs, found)
    for name in said:
        if name in unknown:
            found.settle(name)
            found.leave(name, "its value is not in the file")
    _fit(found)
    return found


SCALE = "scale_rewards"
"""Of TRL; its word is the last on what `loss_type` sets, too."""


def _older(name: str) -> str:
    older = RENAMED.get(name, name.rpartition(".")[2])
    return older if older in TABLES["openrlhf"] else name


def _unknown(value: Any) -> bool:
    """A shell's variable or command that nothing in the file is for."""
    values = value if isinstance(value, list) else [value]
    return any(isinstance(each, str) and ("$" in each or "`" in each) for each in values)


def _fit(found: Translation) -> None:
    """What the algorithm has no use for goes, and is said."""
    options = found.options
    row = ALGORITHMS[options.get(f"{ALGORITHM}.name", "grpo")]
    if not row.critic:
        if not found.said & {"critic_learning_rate", "critic.optim.lr"}:  # it is their default
            options.pop("learner.critic.lr", None)
        found.drop(("learner.critic.",), "the algorithm has no critic")
    if not options.get(KL, found.system == "openrlhf"):
        found.drop((f"{ALGORITHM}.kl.estimator", f"{ALGORITHM}.kl.placement"), "no KL term")
    if not row.siblings:
        found.drop(("schedule.uniform_groups",), "the algorithm compares no siblings")
    if "name" in options:
        options["name"] = re.sub(r"[^\w.-]+", "-", str(options["name"])).strip("-.") or "run"


# -- TRL ------------------------------------------------------------------------------------------

DEVICE, ACCUMULATION = "per_device_train_batch_size", "gradient_accumulation_steps"
GENERATION = "steps_per_generation"


def _pair(options: dict[str, Any]) -> None:
    """The two running means of Adam are one option of ours."""
    found = [options.pop(f"learner.optim.betas.{i}", None) for i in (0, 1)]
    if any(beta is not None for beta in found):
        options["learner.optim.betas"] = [
            beta if beta is not None else usual
            for beta, usual in zip(found, (0.9, 0.999), strict=True)
        ]


def _trl(theirs: dict[str, Any], found: Translation) -> None:
    _pair(found.options)
    if found.switch("use_peft"):
        found.options.setdefault("model.lora.rank", 16)
        found.options.setdefault("model.lora.alpha", 32)
    else:
        found.drop(("model.lora.",), "without use_peft=true it is not used")
    if not truth(theirs.get("vllm_importance_sampling_correction", True)):
        found.options.pop(f"{ALGORITHM}.correction.high", None)
        found.options[f"{ALGORITHM}.correction.kind"] = "none"
    try:
        _batch_of_trl(theirs, found)
    except UNFIT:
        found.left.append(f"{DEVICE}: set schedule.groups_per_step to the groups of a step")


def _batch_of_trl(theirs: dict[str, Any], found: Translation) -> None:
    """Their batch counts completions per device; ours, groups of all ranks together."""
    names = (DEVICE, ACCUMULATION, GENERATION)
    if DEVICE not in theirs:
        return
    accumulation = int(theirs.get(ACCUMULATION, 1))
    generation = int(theirs.get(GENERATION, accumulation))
    completions, group = int(theirs[DEVICE]) * generation, int(theirs["num_generations"])
    found.settle(*names)
    if completions % group or generation % accumulation:
        for name in names:
            found.leave(name)
        found.left.append(
            f"{completions} completions on one device are no whole number of groups of {group}: "
            "set schedule.groups_per_step to what all devices sample for a step together"
        )
        return
    found.options["schedule.groups_per_step"] = completions // group
    if generation > accumulation:
        found.options[f"{ALGORITHM}.minibatches"] = generation // accumulation
    found.left.append(
        f"{DEVICE}={theirs[DEVICE]!r}: {completions} completions on one device are "
        f"schedule.groups_per_step={completions // group}; multiply by their number of devices"
    )


# -- verl -----------------------------------------------------------------------------------------

ACTOR, BUFFER = "actor_rollout_ref.actor", "reward_model.overlong_buffer"
KL_PLACES = (
    # switch, coefficient, estimator, what that is where nobody says, and our place
    (f"{ACTOR}.use_kl_loss", f"{ACTOR}.kl_loss_coef", f"{ACTOR}.kl_loss_type", "k3", "loss"),
    (
        "algorithm.use_kl_in_reward",
        "algorithm.kl_ctrl.kl_coef",
        "algorithm.kl_penalty",
        "kl",
        "reward",
    ),
)
BATCH, MINIBATCH = "data.train_batch_size", f"{ACTOR}.ppo_mini_batch_size"
SAMPLES = "actor_rollout_ref.rollout.val_kwargs"


def _verl(theirs: dict[str, Any], found: Translation) -> None:
    _kl_of_verl(theirs, found)
    if not found.switch(f"{BUFFER}.enable"):
        found.drop(("rewards.overlong_",), f"without {BUFFER}.enable=True it is not used")
    if found.options.get("eval.samples", 1) == 1 and "eval.temperature" in found.options:
        found.drop(("eval.temperature",), "one sample is greedy; set eval.samples above 1")
    _parts(found, theirs, BATCH, MINIBATCH, completions=1)


def _kl_of_verl(theirs: dict[str, Any], found: Translation) -> None:
    """Two places, each with a switch; both are off unless they are asked for."""
    for option in ("coef", "estimator", "placement"):
        found.options.pop(f"{ALGORITHM}.kl.{option}", None)
    used = False
    for switch, name, kind, usual, place in KL_PLACES:
        on = found.switch(switch)
        if on and not used:
            estimator = KL_ESTIMATORS.get(str(theirs.get(kind, usual)))
            if estimator is None:
                found.leave(kind)
            found.options[KL] = float(theirs.get(name, 0.001))
            found.options[f"{ALGORITHM}.kl.estimator"] = estimator or KL_ESTIMATORS[usual]
            found.options[f"{ALGORITHM}.kl.placement"] = place
            used = True
            continue
        why = f"without {switch}=True it is not used"
        if on:
            why = "with us the KL term is in one place"
            found.leave(switch, why)
        for each in (name, kind):
            found.leave(each, why)


# -- OpenRLHF -------------------------------------------------------------------------------------


def _openrlhf(theirs: dict[str, Any], found: Translation) -> None:
    completions = int(theirs.get("n_samples_per_prompt", 1))
    _parts(found, theirs, "rollout_batch_size", "train_batch_size", completions=completions)
    trackers = [name for name in ("tensorboard", "wandb") if theirs.get(f"use_{name}")]
    found.settle("use_tensorboard", "use_wandb")
    if trackers:
        found.options["logging.trackers"] = trackers
    if found.options.get("eval.samples", 2) == 1:
        found.drop(("eval.temperature",), "one sample is greedy")


def _parts(
    found: Translation, theirs: Mapping[str, Any], whole: str, part: str, *, completions: int
) -> None:
    """Optimizer steps of a table; so many of the smaller batch are one of the larger."""
    found.settle(part)
    try:
        parts, rest = divmod(int(theirs[whole]) * completions, int(theirs[part]))
    except UNFIT:
        parts, rest = 0, 1
    if parts and not rest:
        found.options[f"{ALGORITHM}.minibatches"] = parts
    else:
        found.leave(part, f"no whole number of them is in {whole}")


# -- their files ----------------------------------------------------------------------------------

OPTION = re.compile(r"\+{0,2}([A-Za-z_][\w./-]*)=(.*)", re.S)
ASSIGNMENT = re.compile(r"\s*(?:export\s+)?([A-Za-z_]\w*)=(\S*|\"[^\"]*\"|'[^']*')\s*(?:#.*)?")
VARIABLE = re.compile(r"\$(?:\{(\w+)(?::?-([^}]*))?\}|(\w+))")


def read(path: Path) -> dict[str, Any]:
    """Options by their dotted names; in a script, with its own variables put in."""
    text = path.read_text()
    if path.suffix in (".yaml", ".yml"):
        tree = yaml.safe_load(text)
        return dict(flatten(tree)) if isinstance(tree, dict) else {}
    variables, rest = {"HOME": str(Path.home())}, []
    for line in text.replace("\\\n", " ").splitlines():
        full = VARIABLE.sub(
            lambda found: variables.get(found[1] or found[3], found[2] or found[0]), line
        )
        if assigned := ASSIGNMENT.fullmatch(full):
            variables[assigned[1]] = assigned[2].strip("\"'")
        else:
            rest.append(full)
    words = shlex.split("\n".join(rest), comments=True)
    found: dict[str, Any] = {}
    while words:
        word = words.pop(0)
        if match := OPTION.fullmatch(word.removeprefix("--")):
            found[match[1]] = _value(match[2])
        elif word.startswith("--") and word != "--":
            values = []
            while words and not words[0].startswith("--"):
                if OPTION.fullmatch(words[0]):
                    break
                values.append(_value(words.pop(0)))
            found[word[2:]] = values[0] if len(values) == 1 else (values or True)
    return found


def _value(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text
