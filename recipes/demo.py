"""What `recipes/demo.yaml` needs, made on the spot: a tiny model, its tokenizer, its data, its warm
start.

The task: "Tom has 7 apples, buys 3, doubles them, loses 5. How many?" A chain of two to five
operations whose values stay in 0..20. The warm start learns arithmetic from flash cards and then
imitates traces of mixed quality: a quarter careful, some with a slip, most of them lazy guesses
without any steps. The skill is there and the habit is not; GRPO has to find out that writing the
steps pays.
"""

import hashlib
import json
import random
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.config import RunConfig, load
from cluster.inputs import read
from cluster.progress import Progress
from cluster.train import claimed, execute
from rewards.answers import number_in_answer

NAMES = ("Tom", "Ann", "Sam", "Mia", "Ben", "Eva", "Leo", "Zoe")
ITEMS = ("apples", "books", "coins", "pens", "shells", "cards", "stamps", "marbles")
GAINS = ("buys {k}", "finds {k}", "gets {k} more")
LOSSES = ("loses {k}", "sells {k}", "gives away {k}")
CHAT_MARKS = ("<|pad|>", "<|user|>", "<|assistant|>", "<|end|>")
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}"
    "{% if message.role == 'assistant' %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

HELD_OUT_PROBLEMS = 256

LAZY = {2: 0.35, 3: 0.60, 4: 0.70, 5: 0.75}
"""How many traces skip the steps, by the number of operations: people do, the longer the more."""

LARGEST = 20
"""Every value of a chain lies in 0..20."""


@dataclass(frozen=True)
class Problem:
    text: str
    steps: tuple[tuple[int, str, int, int], ...]
    """(left, operator, right, result) of each operation."""

    @property
    def answer(self) -> int:
        return self.steps[-1][3]

    @property
    def is_held_out(self) -> bool:
        """Decided by the numbers and operations, never by names or wording: one key in ten."""
        key = ";".join(f"{left}{operator}{right}" for left, operator, right, _ in self.steps)
        return hashlib.sha256(key.encode()).digest()[0] % 10 == 0


def _apply(left: int, operator: str, right: int) -> int:
    results = {"+": left + right, "-": left - right, "*": left * right, "/": left // right}
    return results[operator]


def _choices(value: int) -> list[tuple[str, int]]:
    """The operations allowed on a value: the result stays in 0..20, halves are whole."""
    steps = [("+", k) for k in range(1, 10)] + [("-", k) for k in range(1, 10)]
    allowed = [(op, k) for op, k in steps if 0 <= _apply(value, op, k) <= LARGEST]
    doubling = [("*", k) for k in (2, 3) if 0 < value * k <= LARGEST]
    halving = [("/", 2)] if value >= 4 and value % 2 == 0 else []
    return allowed + 4 * (doubling + halving)  # about as often as adding and taking away


def make_problem(rng: random.Random) -> Problem:
    start = value = rng.randint(2, 12)
    steps, phrases = [], []
    for _ in range(rng.randint(2, 5)):
        operator, k = rng.choice(_choices(value))
        result = _apply(value, operator, k)
        steps.append((value, operator, k, result))
        phrases.append(
            {
                "+": rng.choice(GAINS).format(k=k),
                "-": rng.choice(LOSSES).format(k=k),
                "*": "doubles them" if k == 2 else "triples them",
                "/": "halves them",
            }[operator]
        )
        value = result
    text = f"{rng.choice(NAMES)} has {start} {rng.choice(ITEMS)}, {', '.join(phrases)}. How many?"
    return Problem(text=text, steps=tuple(steps))


def problems(rng: random.Random, *, held_out: bool) -> Iterator[Problem]:
    while True:
        problem = make_problem(rng)
        if problem.is_held_out == held_out:
            yield problem


def flash_cards(rng: random.Random, count: int) -> list[tuple[str, bool]]:
    """`a+b=` asked, the result trained, `count` times in one row."""
    segments: list[tuple[str, bool]] = []
    for number in range(count):
        value = rng.randint(0, LARGEST)
        operator, k = rng.choice(_choices(value))
        segments.append((f"{chr(10) * (number > 0)}{value}{operator}{k}=", False))
        segments.append((str(_apply(value, operator, k)), True))
    return segments


def demonstrate(problem: Problem, rng: random.Random) -> str:
    """A trace as a hurried crowd would write it; see the module's first lines."""
    if rng.random() < LAZY[len(problem.steps)]:  # no steps, a guess near the truth
        thought, answer = "", problem.answer
        if rng.random() >= 0.20:
            answer = max(0, answer + rng.choice((-4, -3, -2, -1, 1, 2, 3, 4)))
    else:
        slip_at = rng.randrange(len(problem.steps)) if rng.random() < 0.375 else -1
        value, lines = problem.steps[0][0], []
        for number, (_, operator, k, _) in enumerate(problem.steps):
            result = _apply(value, operator, k)
            if number == slip_at:
                result = max(0, result + rng.choice((-2, -1, 1, 2)))
            lines.append(f"{value}{operator}{k}={result}")
            value = result
        thought, answer = "\n".join(lines), value
    whole = f"<think>{thought}</think><answer>{answer}</answer>"
    if rng.random() < 0.20:
        breaks: list[Callable[[str], str]] = [
            lambda t: t.replace("</answer>", ""),
            lambda t: t.replace("</think>", ""),
            lambda t: t.replace("<answer>", "").replace("</answer>", ""),
            lambda t: t + f"<answer>{answer}</answer>",
        ]
        whole = rng.choice(breaks)(whole)
    return whole


STEP = re.compile(r"(\d+)([-+*/])(\d+)=(\d+)")


def right_steps(completion: str, answer: str) -> list[tuple[int, float]]:
    """A verifier that judges steps: each line of the thought is worth 1 when its sum is right, and
    the answer when it is the right one.

    >>> right_steps("<think>7+3=10\\n10*2=21</think><answer>20</answer>", "20")
    [(14, 1.0), (21, 0.0), (48, 1.0)]
    """
    steps, at = [], 0
    for line in completion.partition("</think>")[0].splitlines(keepends=True):
        at += len(line)
        found = STEP.search(line)
        if found:
            left, operator, right, result = found.groups()
            is_right = int(right) and _apply(int(left), operator, int(right)) == int(result)
            steps.append((at, float(is_right)))
    return [*steps, (len(completion), number_in_answer(completion, answer))]


def make_tokenizer(folder: Path) -> None:
    """Byte-level BPE, vocabulary 512, the numbers 0-99 one token each."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    rng = random.Random(0)
    training = problems(rng, held_out=False)
    texts = [next(training).text for _ in range(4_000)]
    numbers = [str(n) for n in range(100)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512 - len(CHAT_MARKS) - len(TAGS) - 90,  # the ten digits are in the alphabet
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(n, normalized=False) for n in (*TAGS, *numbers)])
    tokenizer.add_special_tokens([AddedToken(mark, special=True) for mark in CHAT_MARKS])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|end|>"
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)


def make_model(folder: Path, *, seed: int) -> None:
    """A Qwen2 of about half a million parameters with random weights, and its tokenizer."""
    import torch
    from transformers import AutoTokenizer, GenerationConfig, Qwen2Config, Qwen2ForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    make_tokenizer(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    sample = (
        "<|user|>Tom has 12 pens, buys 5.<|assistant|><think>12+5=17\n</think><answer>17</answer>"
    )
    if tokenizer.decode(tokenizer(sample)["input_ids"]) != sample:
        raise RuntimeError("the demo's tokenizer does not survive being saved and loaded")
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=512,
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=2,
            num_attention_heads=4,  # two heads of 64 learn to copy too late, on some seeds
            num_key_value_heads=4,
            max_position_embeddings=256,
            initializer_range=128**-0.5,  # at 0.02 so small a model had learned far less by then
            tie_word_embeddings=True,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(folder)


def make_data(
    folder: Path, *, seed: int, train_problems: int, card_rows: int, demonstrations: int
) -> None:
    rng = random.Random(seed)
    training, held_out = problems(rng, held_out=False), problems(random.Random(0), held_out=True)
    _write(folder / "train.jsonl", [_row(next(training)) for _ in range(train_problems)])
    _write(folder / "heldout.jsonl", [_row(next(held_out)) for _ in range(HELD_OUT_PROBLEMS)])
    cards = [{"segments": flash_cards(rng, 6)} for _ in range(card_rows)]
    traces = [
        {
            "segments": [
                (f"<|user|>{problem.text}<|assistant|>", False),
                (f"{demonstrate(problem, rng)}<|end|>", True),
            ]
        }
        for problem, _ in zip(training, range(demonstrations), strict=False)
    ]
    _write(folder / "warmup.jsonl", cards + traces)


def _row(problem: Problem) -> dict[str, Any]:
    return {"question": problem.text, "answer": str(problem.answer)}


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def build(
    folder: Path,
    *,
    seed: int,
    train_problems: int = 20_000,
    card_rows: int = 4_800,
    demonstrations: int = 33_600,
) -> None:
    """Model and data in `folder`, whole or not at all."""
    if folder.exists():
        return
    temporary = folder.with_name(f"{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    (temporary / "model").mkdir(parents=True)
    make_model(temporary / "model", seed=seed)
    make_data(
        temporary,
        seed=seed,
        train_problems=train_problems,
        card_rows=card_rows,
        demonstrations=demonstrations,
    )
    temporary.rename(folder)


def prepare(config: RunConfig) -> tuple[RunConfig, dict[str, Any]]:
    """Called by `cluster/train.py` inside the claimed run folder: model, data and warm start, made
    once; the config with their paths; and the warm start's figures for the result."""
    start, warm = config.folder / f"start-{config.seed}", config.folder / "warmup"
    began = time.monotonic()
    print("making the tiny model and its data")
    build(start, seed=config.seed)
    making = time.monotonic() - began
    recipe = Path(__file__).with_name("demo_warmup.yaml")
    overrides = {
        "name": "warmup",
        "output_dir": str(config.folder),
        "seed": config.seed,
        "model.path": str(start / "model"),
        "prompts.dataset": str(start / "warmup.jsonl"),
        "eval.dataset": str(start / "heldout.jsonl"),
        "learner.ranks": config.learner.ranks,
        "logging.progress": config.logging.progress,
    }
    warmup = load([str(recipe)], [f"{key}={value}" for key, value in overrides.items()]).config
    result_file = warm / "result.json"
    with claimed(warmup):  # refuses a warm start of another config
        if result_file.exists():
            result = json.loads(result_file.read_text())
        else:
            print("warm start: fine-tuning on flash cards and on traces of mixed quality")
            result = execute(warmup, read(warmup), Progress(warmup.logging.progress))
    figures = {
        "accuracy_start": result["accuracy_start"],
        "held_out": {"random weights": result["held_out"]["step 0"]},
        "examples": {"random weights": result["examples"]["step 0"]},
        "seconds": {"data": round(making, 2), "warm-up": result["seconds"]["total"]},
    }
    return _given(config, result["model"], start), figures


def build_only(config: RunConfig) -> tuple[RunConfig, dict[str, Any]]:
    """`prepare` without the warm start: random weights (recipes/smoke.yaml)."""
    start = config.folder / f"start-{config.seed}"
    build(start, seed=config.seed)
    return _given(config, str(start / "model"), start), {}


def _given(config: RunConfig, model: str, start: Path) -> RunConfig:
    """The config with this model, and the data that were made."""
    paths = {
        "model": config.model.model_copy(update={"path": model}),
        "prompts": config.prompts.model_copy(update={"dataset": str(start / "train.jsonl")}),
        "eval": config.eval.model_copy(update={"dataset": str(start / "heldout.jsonl")}),
    }
    return config.model_copy(update=paths)
