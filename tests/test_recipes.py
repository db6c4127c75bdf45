"""The recipes for GPUs, as far as can be said without one: a row of each dataset's layout becomes
the prompt it should, right and wrong completions are told apart, and the whole recipe runs, but for
model, dataset and sizes."""

import json
from pathlib import Path

import pytest
from runs import ROOT, metrics, start

from cluster.config import RunConfig, load
from rewards import Attempt
from rewards.scorer import Scorer
from rollout.prompts import PromptStream

GSM8K = {"question": "Tom has 3 pens and buys 4. How many?", "answer": "3 + 4 = 7\n#### 7"}
DAPO = {"prompt": "What is 1/2 + 1/4?", "solution": "3/4", "data_source": "math_dapo"}
AIME = {"id": 1, "problem": "Find 60 + 4.", "solution": "It is 64.", "answer": "64", "year": "2024"}
TESTS = {
    "question": "Print the sum of two numbers.",
    "answer": {"inputs": ["1 2\n", "5 6\n"], "outputs": ["3\n", "11\n"]},
}
PROGRAM = "So we add.\n```python\nprint(sum(map(int, input().split())))\n```"
THOUGHT = "<think>two quarters, one more</think> <answer>\\boxed{3/4}</answer>\n"
RECIPES = {
    # recipe: (rows to train on, to evaluate on, a right completion, a wrong one, the full reward)
    "gsm8k_0.5b": (GSM8K, GSM8K, "3 + 4 = 7\n#### 7", "3 + 4 = 8\n#### 8", 1.0),
    "dapo_math_7b": (DAPO, AIME, r"It is \boxed{\frac{3}{4}}.", r"It is \boxed{2/6}.", 1.0),
    "ppo_math_7b": (DAPO, AIME, THOUGHT, THOUGHT.replace("3/4", "1/3"), 1.0),
    "r1_zero_7b": (DAPO, AIME, THOUGHT, r"It is \boxed{2/6}.", 2.0),
    "code_7b": (TESTS, TESTS, PROGRAM, PROGRAM.replace("sum", "max"), 1.0),
}
SMALL = {
    "steps": "2",
    "model.dtype": "float32",
    "prompts.subset": "",
    "prompts.max_tokens": "236",
    "sampler.replicas": "1",
    "sampler.group_size": "4",
    "sampler.max_running": "32",
    "sampler.sampling.max_tokens": "16",
    "schedule.groups_per_step": "4",
    "schedule.uniform_groups": "train",  # a random model is never right
    "learner.ranks": "1",
    "learner.algorithm.minibatches": "2",
    "learner.micro_batch_tokens": "2048",
    "rewards.scorers": "1",
    "rewards.overlong_buffer": "4",
    "eval.prompts": "2",
    "eval.samples": "2",
}


def recipe(name: str) -> RunConfig:
    return load([str(ROOT / "recipes" / f"{name}.yaml")], []).config


def test_every_recipe_is_here():
    found = {path.stem for path in (ROOT / "recipes").glob("*.yaml")}
    assert found - {"demo", "demo_warmup", "smoke", "gsm8k_1.5b"} == set(RECIPES)
    both = [str(ROOT / "recipes" / f"gsm8k_{size}.yaml") for size in ("0.5b", "1.5b")]
    config = load(both, []).config
    config.check()
    assert config.model.path.endswith("1.5B-Instruct") and config.prompts.subset == "main"


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_says_whether_it_was_run(name: str):
    head = (ROOT / "recipes" / f"{name}.yaml").read_text().partition("name:")[0]
    assert "Not yet run" in head or "Measured" in head


@pytest.mark.parametrize("name", RECIPES)
def test_a_reference_that_moves_does_so_before_the_end(name: str):
    config = recipe(name)
    assert config.learner.algorithm.kl.update_every < config.steps


@pytest.mark.parametrize("name", RECIPES)
def test_rows_become_prompts_and_answers_are_told_apart(name: str, tmp_path: Path, tokenizer):
    config = recipe(name)
    config.check()
    row, _, right, wrong, full = RECIPES[name]
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    local = {"dataset": str(tmp_path / "rows.jsonl"), "subset": ""}
    given = PromptStream(config.prompts.model_copy(update=local), tokenizer, seed=1).at(0)
    question = row.get("question") or row["prompt"]
    before, _, after = given.text.partition(question)
    assert config.prompts.prefix in before and config.prompts.suffix in after
    if config.prompts.template == "raw":
        assert given.text == config.prompts.prefix + question + config.prompts.suffix
        assert before.endswith("User: ") and after.startswith("\nAssistant:")
    attempts = [Attempt(text=text, num_tokens=9, truncated=False) for text in (right, wrong)]
    scorer = Scorer(config.rewards, max_tokens=config.sampler.sampling.max_tokens)
    try:
        scores = scorer.score(given.task(), attempts)
    finally:
        scorer.close()
    assert [score.outcome for score in scores] == ["scored", "scored"], scores
    assert [score.reward for score in scores] == [full, 0.0], scores


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.vllm
@pytest.mark.deepspeed
@pytest.mark.parametrize("name", RECIPES)
def test_the_whole_recipe_runs_small(name: str, tiny: Path, tmp_path: Path):
    train, held_out, *_ = RECIPES[name]
    for file, row in (("train", train), ("test", held_out)):
        (tmp_path / f"{file}.jsonl").write_text((json.dumps(row) + "\n") * 8)
    options = SMALL | {
        "model.path": str(tiny / "model"),
        "prompts.dataset": str(tmp_path / "train.jsonl"),
        "eval.dataset": str(tmp_path / "test.jsonl"),
        "output_dir": str(tmp_path / "outputs"),
    }
    if held_out is train:
        options.pop("eval.samples")
    run = start("train", f"recipes/{name}.yaml", *(f"{k}={v}" for k, v in options.items()))
    said, _ = run.communicate(timeout=300)
    assert run.returncode == 0, said[-4000:]
    folder = tmp_path / "outputs" / recipe(name).name
    rows = metrics(folder)
    assert len(rows) == 2 and all(row["policy/canary_gap"] < 1e-4 for row in rows)
    assert (folder / "model" / "config.json").is_file()
