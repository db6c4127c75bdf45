"""Datasets as they are: layouts recognised, printed, overridden; looked at before anything runs."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from cluster.cli import main
from rollout.config import PromptConfig
from rollout.prompts import PromptStream

CHAT = [{"role": "user", "content": "2+2?"}]

LAYOUTS: dict[str, tuple[dict[str, Any], str, str]] = {
    "verl": (
        {
            "data_source": "openai/gsm8k",
            "prompt": CHAT,
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": "4"},
            "extra_info": {"split": "train", "index": 3},
        },
        "verl layout: question=prompt, answer=reward_model.ground_truth, source=data_source",
        "openai/gsm8k",
    ),
    "SkyRL": (
        {
            "data_source": "aime",
            "prompt": CHAT,
            "env_class": "aime",
            "reward_spec": {"method": "rule", "ground_truth": "4"},
            "extra_info": {"index": 3},
        },
        "SkyRL layout: question=prompt, answer=reward_spec.ground_truth, source=data_source",
        "aime",
    ),
    "TRL": (
        {"prompt": "2+2?", "solution": "4", "level": 2},
        "TRL layout: question=prompt, ",
        "file",
    ),
    "TRL chat": ({"prompt": CHAT, "answer": "4"}, "TRL layout: question=prompt, ", "file"),
    "OpenRLHF": ({"input": "2+2?", "label": "4"}, "OpenRLHF layout: question=input, ", "file"),
    "slime": ({"prompt": "2+2?", "label": "4", "metadata": {"a": 1}}, "slime layout: ", "file"),
    "open-instruct": (
        {"messages": CHAT, "ground_truth": "4", "dataset": "gsm8k"},
        "open-instruct layout: question=messages, answer=ground_truth, source=dataset",
        "gsm8k",
    ),
    "messages": (
        {"messages": [*CHAT, {"role": "assistant", "content": "4"}]},
        "messages layout: question=messages, answer=its last assistant message",
        "file",
    ),
    "GSM8K": ({"question": "2+2?", "answer": "2+2=4\n#### 4"}, "GSM8K layout: ", "file"),
}


def write(folder: Path, rows: list[dict[str, Any]], suffix: str) -> Path:
    path = folder / f"file.{suffix}"
    if suffix == "parquet":
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_of_other_systems_are_recognised(
    name: str, suffix: str, tmp_path: Path, tokenizer: Any
):
    row, layout, source = LAYOUTS[name]
    path = write(tmp_path, [row, row], suffix)
    stream = PromptStream(PromptConfig(dataset=str(path), shuffle=False), tokenizer, seed=0)
    assert str(stream.layout).startswith(layout)
    prompt = next(iter(stream))
    assert "2+2?" in prompt.text and "<|assistant|>" in prompt.text
    assert prompt.answer.endswith("4")
    assert prompt.source == source
    task = prompt.task()
    if "messages" in row or isinstance(row.get("prompt"), list):
        assert task.prompt == CHAT
    for column in ("extra_info", "level", "metadata"):
        if column in row:
            assert task.extra[column] == row[column], "whatever a reward function may ask for"


def test_an_option_overrides_what_is_recognised(tmp_path: Path, tokenizer: Any):
    row = {"prompt": "wrong", "answer": "wrong", "task": {"text": "2+2?"}, "meta": '{"gold": 4}'}
    path = write(tmp_path, [row], "jsonl")
    config = PromptConfig(
        dataset=str(path), question="task.text", answer="meta.gold", source="meta.gold"
    )
    stream = PromptStream(config, tokenizer, seed=0)
    assert str(stream.layout).startswith("your layout: question=task.text, answer=meta.gold")
    prompt = next(iter(stream))
    assert "2+2?" in prompt.text and (prompt.answer, prompt.source) == ("4", "4")


def test_structured_answers_become_json(tmp_path: Path, tokenizer: Any):
    tests = {"inputs": ["1"], "outputs": ["2"]}
    path = write(tmp_path, [{"prompt": "double", "ground_truth": tests}], "jsonl")
    prompt = next(iter(PromptStream(PromptConfig(dataset=str(path)), tokenizer, seed=0)))
    assert json.loads(prompt.answer) == tests
    assert prompt.task().extra["ground_truth"] == tests, "as it was, for functions that want it so"


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([{"text": "a"}], "no layout that is known has the columns text; set prompts.question"),
        (
            [{"prompt": "a", "answer": "1"}, {"prompt": "b"}],
            "row 1: column 'answer' does not exist",
        ),
        ([{"prompt": "", "answer": "1"}], "row 0: column 'prompt' is empty"),
        ([{"prompt": 3, "answer": "1"}], "row 0: column 'prompt' is a int, neither a text nor"),
    ],
)
def test_what_is_wrong_is_said_with_row_and_column(
    rows: list[dict], says: str, tmp_path: Path, tokenizer: Any
):
    path = write(tmp_path, rows, "jsonl")
    with pytest.raises(ValueError) as error:
        PromptStream(PromptConfig(dataset=str(path)), tokenizer, seed=0)
    assert says in str(error.value)


# -- the commands ---------------------------------------------------------------------------------


def test_data_check_says_what_a_dataset_holds(
    tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture
):
    rows = [{"question": f"What is {n} + {n}?", "answer": f"#### {2 * n}"} for n in range(40)]
    rows += [{"question": "What is 1 + 1?", "answer": "#### two"}]
    path = write(tmp_path, rows, "jsonl")
    assert main(["data", "check", str(path), f"model.path={tiny / 'model'}"]) == 0
    said = capsys.readouterr().out
    assert "41 prompts" in said and "GSM8K layout" in said
    assert "prompt length in tokens:" in said and "median" in said and "#####" in said
    assert "number gives 40 of 41 1.0" in said
    assert "warning: 1 prompts stand there more than once" in said
    assert "warning: 1 of 41 rows are unscorable; file/40: number: ValueError" in said


def test_data_check_looks_at_the_template(
    tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture
):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny / "model")
    specials = tokenizer.all_special_tokens
    tokenizer.bos_token = specials[0]
    tokenizer.chat_template = (
        "{{ bos_token }}{{ bos_token }}{% for m in messages %}{{ m['content'] }}!{% endfor %}"
    )
    tokenizer.save_pretrained(tmp_path / "model")
    path = write(tmp_path, [{"question": "2+2=", "answer": "4"}], "jsonl")
    model = [f"model.path={tmp_path / 'model'}"]
    assert main(["data", "check", str(path), *model]) == 0
    said = capsys.readouterr().out
    assert "begin with two BOS tokens" in said
    assert "which stops nothing" in said
    assert "no generation prompt" in said
    assert main(["data", "preview", str(path), *model]) == 0
    said = capsys.readouterr().out
    assert said.count(f"{specials[0]}]]") == 2, "special tokens are marked"
    assert "'4': scored, reward 1; number 1" in said
    assert "'I do not know.': scored, reward 0" in said


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["data"], "needs a verb and a file"),
        (["data", "chek", "x.jsonl"], "needs a verb and a file"),
        (["data", "check", "nowhere.jsonl"], "no such file"),
        (["data", "check", "rows.jsonl", "rewards.verifiers.nmber=1"], "not a built-in verifier"),
        (["data", "preview", "rows.jsonl", "--row", "7"], "has 1 rows, no row 7"),
        (["data", "preview", "rows.jsonl", "--row", "x"], "--row is the number of a row"),
    ],
)
def test_wrong_words_are_refused(
    words: list[str],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"question": "2+2?", "answer": "4"}')
    assert main(words) == 2
    assert says in capsys.readouterr().err


# -- pickles --------------------------------------------------------------------------------------


class Marks:
    """Leaves a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self._marker}",)


def test_a_pickle_in_a_dataset_never_runs(tmp_path: Path, tokenizer: Any):
    marker = tmp_path / "marker"
    bad = pickle.dumps(Marks(marker))
    row = {"prompt": "2+2?", "answer": "4", "tests": bad, "private": bad.hex()}
    path = write(tmp_path, [row], "parquet")
    prompt = next(iter(PromptStream(PromptConfig(dataset=str(path)), tokenizer, seed=0)))
    prompt.task()
    as_answer = PromptConfig(dataset=str(path), answer="tests")
    next(iter(PromptStream(as_answer, tokenizer, seed=0)))
    for suffix in ("pkl", "parquet", "arrow", "jsonl"):
        whole = tmp_path / f"all.{suffix}"
        whole.write_bytes(bad)
        with pytest.raises(ValueError, match="cannot be read"):
            PromptStream(PromptConfig(dataset=str(whole)), tokenizer, seed=0)
    assert not marker.exists()


def test_a_pickle_in_a_model_folder_never_runs(tiny: Path, tmp_path: Path):
    import shutil

    from cluster.inputs import load_tokenizer
    from learner.model import load_model

    marker = tmp_path / "marker"
    folder = tmp_path / "model"
    shutil.copytree(tiny / "model", folder)
    for weights in folder.glob("*.safetensors"):
        weights.unlink()
    for name in ("pytorch_model.bin", "training_args.bin", "tokenizer.pkl"):
        (folder / name).write_bytes(pickle.dumps(Marks(marker)))
    load_tokenizer(str(folder))
    with pytest.raises((ValueError, OSError, RuntimeError, pickle.UnpicklingError)):
        load_model(str(folder), dtype="float32")
    assert not marker.exists()


def test_a_pickle_in_a_checkpoint_never_runs(tmp_path: Path):
    """Not even in a shard whose digest is right, as in a run folder made by somebody else."""
    import torch

    from learner.shards import check_shard

    marker = tmp_path / "marker"
    honest, bad = tmp_path / "honest.pt", tmp_path / "bad.pt"
    torch.save({"w": torch.ones(3), "step": 4}, honest)
    check_shard(honest)
    torch.save({"w": torch.ones(3), "more": Marks(marker)}, bad)
    with pytest.raises(ValueError, match=r"holds (posix|os)\.system"):
        check_shard(bad)
    bad.write_bytes(pickle.dumps(Marks(marker)))
    with pytest.raises(ValueError, match="is no file of torch's"):
        check_shard(bad)
    assert not marker.exists()
