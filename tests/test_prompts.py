"""Datasets to prompts: formats, columns, templates, limits; the stream is a pure function."""

import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rollout.config import PromptConfig
from rollout.demonstrations import DemonstrationStream
from rollout.prompts import PromptStream, read_rows
from rollout.types import NO_POLICY

ROWS = [{"question": f"{a} + 1?", "answer": str(a + 1)} for a in range(10)]


@pytest.fixture
def dataset(tmp_path: Path) -> str:
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(path)


def stream(dataset: str, tokenizer, seed: int = 1, **fields) -> PromptStream:
    return PromptStream(PromptConfig(dataset=dataset, **fields), tokenizer, seed=seed)


def test_an_epoch_is_a_permutation_and_epochs_differ(dataset: str, tokenizer):
    prompts = stream(dataset, tokenizer)
    epochs = [[prompts.at(10 * e + i).id for i in range(10)] for e in range(3)]
    for epoch in epochs:
        assert Counter(epoch) == Counter(f"train/{i}" for i in range(10))
    assert epochs[0] != epochs[1] != epochs[2]


def test_the_stream_is_a_pure_function_of_seed_and_ticket(dataset: str, tokenizer):
    one, two = stream(dataset, tokenizer), stream(dataset, tokenizer)
    forwards = [one.at(t).id for t in range(35)]
    assert [two.at(t).id for t in reversed(range(35))] == forwards[::-1]
    assert [stream(dataset, tokenizer, seed=2).at(t).id for t in range(35)] != forwards


def test_the_files_order_without_shuffling(dataset: str, tokenizer):
    prompts = stream(dataset, tokenizer, shuffle=False)
    assert [prompts.at(t).id for t in (0, 1, 10)] == ["train/0", "train/1", "train/0"]


def test_the_chat_template_is_applied_once(dataset: str, tokenizer):
    prompt = stream(dataset, tokenizer, shuffle=False, suffix=" Think.").at(0)
    assert prompt.text == "<|user|>0 + 1? Think.<|assistant|>"
    assert tokenizer.decode(prompt.token_ids) == prompt.text
    framed = stream(dataset, tokenizer, shuffle=False, prefix="Q: ", suffix=" A:")
    assert framed.at(0).text == "<|user|>Q: 0 + 1? A:<|assistant|>"
    raw = stream(dataset, tokenizer, shuffle=False, template="raw", prefix="Q: ", suffix=" A:")
    assert raw.at(0).text == "Q: 0 + 1? A:"


def test_raw_takes_one_message_and_no_conversation(tmp_path: Path, tokenizer):
    path = tmp_path / "chat.jsonl"
    said = {"role": "user", "content": "1+1"}
    path.write_text(json.dumps({"prompt": [said], "answer": "2"}))
    assert stream(str(path), tokenizer, template="raw").at(0).text == "1+1"
    path.write_text(json.dumps({"prompt": [said, said], "answer": "2"}))
    with pytest.raises(ValueError, match="a conversation needs a chat template"):
        stream(str(path), tokenizer, template="raw")


def test_a_folder_of_the_hubs_layout_and_its_split(tmp_path: Path, tokenizer):
    pytest.importorskip("datasets", reason="the hub extra is not installed")
    for subset in ("main", "other"):
        for split, rows in (("train", 3), ("test", 2)):
            table = pa.Table.from_pylist(
                [{"question": f"{subset} {split} {n}?", "answer": str(n)} for n in range(rows)]
            )
            (tmp_path / subset).mkdir(exist_ok=True)
            pq.write_table(table, tmp_path / subset / f"{split}.parquet")
    read = read_rows(str(tmp_path / "main"), split="test")
    assert [row["question"] for row in read] == ["main test 0?", "main test 1?"]
    found = stream(str(tmp_path / "other"), tokenizer, split="train", shuffle=False)
    assert len(found) == 3 and "other train 0?" in found.at(0).text
    with pytest.raises(ValueError, match="nosuch"):
        read_rows(str(tmp_path / "main"), split="nosuch")


def test_messages_are_taken_as_they_are(tmp_path: Path, tokenizer):
    path = tmp_path / "chat.jsonl"
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes?"}]
    messages.append({"role": "user", "content": "1+1"})
    path.write_text(json.dumps({"question": messages, "answer": "2"}))
    text = stream(str(path), tokenizer, shuffle=False).at(0).text
    assert text == "<|user|>hi<|assistant|>yes?<|end|><|user|>1+1<|assistant|>"


@pytest.mark.parametrize("suffix", ["parquet", "arrow", "stream.arrow"])
def test_other_file_formats_hold_the_same(suffix: str, tmp_path: Path):
    table, path = pa.Table.from_pylist(ROWS), tmp_path / f"data.{suffix}"
    if suffix == "parquet":
        pq.write_table(table, path)
    else:
        new = pa.ipc.new_stream if suffix.startswith("stream") else pa.ipc.new_file
        with new(path, table.schema) as writer:
            writer.write_table(table)
    assert read_rows(str(path)) == ROWS


@pytest.mark.parametrize(("policy", "dropped", "truncated"), [("drop", 1, 0), ("truncate", 0, 1)])
def test_a_prompt_over_the_limit(
    policy: str, dropped: int, truncated: int, tmp_path: Path, tokenizer
):
    path = tmp_path / "long.jsonl"
    rows = [*ROWS, {"question": "apples " * 50, "answer": "1"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompts = stream(str(path), tokenizer, max_tokens=20, too_long=policy)
    report = prompts.report
    assert (report.kept, report.dropped, report.truncated) == (11 - dropped, dropped, truncated)
    assert max(len(p.token_ids) for p in prompts) <= 20
    with pytest.raises(
        ValueError, match=r"prompt long/10 has \d+ tokens, prompts\.max_tokens is 20"
    ):
        stream(str(path), tokenizer, max_tokens=20)


def test_when_every_prompt_is_too_long_there_is_nothing_to_train_on(dataset: str, tokenizer):
    with pytest.raises(ValueError, match="all 10 prompts are longer"):
        stream(dataset, tokenizer, max_tokens=1, too_long="drop")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("missing.jsonl", None, "no such file"),
        ("empty.jsonl", "", "is empty"),
        ("broken.jsonl", "{", "cannot be read"),
        ("text.csv", "a,b", "the name must end in"),
        ("not/a-file", None, "pip install cohort"),
        ("", None, "prompts.dataset is not set"),
    ],
)
def test_a_dataset_that_is_not_one(name: str, content: str | None, says: str, tmp_path: Path):
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError) as error:
        read_rows(str(path) if content is not None or name.endswith("jsonl") else name)
    assert says in str(error.value)


def test_a_wrong_column_is_named_with_those_there_are(dataset: str, tokenizer):
    with pytest.raises(
        ValueError, match=r"column 'query' does not exist \(columns: question, answer"
    ):
        stream(dataset, tokenizer, question="query")


def test_an_empty_cell_is_named_by_its_row(tmp_path: Path, tokenizer):
    path = tmp_path / "holes.jsonl"
    path.write_text(json.dumps(ROWS[0]) + "\n" + json.dumps({"question": "x", "answer": ""}))
    with pytest.raises(ValueError, match="row 1: column 'answer' is empty"):
        stream(str(path), tokenizer)


def test_a_template_that_is_asked_for_must_be_there(dataset: str, tokenizer):
    import copy

    bare = copy.deepcopy(tokenizer)
    bare.chat_template = None
    with pytest.raises(ValueError, match="the tokenizer has no chat template"):
        stream(dataset, bare, template="chat")
    assert stream(dataset, bare, shuffle=False).at(0).text == "0 + 1?"


def test_gsm8k_works_as_it_is(shared: Path, tokenizer):
    from rewards.answers import number

    path = str(shared / "data" / "gsm8k" / "test.jsonl")
    prompts = stream(path, tokenizer, max_tokens=2000)
    assert len(prompts) > 1000
    for ticket in range(50):
        assert "####" in prompts.at(ticket).answer
        assert number(prompts.at(ticket).answer, prompts.at(ticket).answer) == 1.0


def test_demonstrations_train_on_what_they_say(tmp_path: Path, tokenizer):
    path = tmp_path / "d.jsonl"
    rows = [
        {"prompt": "<|user|>1+1<|assistant|>", "completion": "2<|end|>"},
        {"segments": [["7+5=", False], ["12", True], ["\n1+1=", False], ["2", True]]},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    demonstrations = DemonstrationStream(PromptConfig(dataset=str(path)), tokenizer)
    assert len(demonstrations) == 2
    [first] = demonstrations.at(2).group.completions
    assert tokenizer.decode(first.token_ids) == "2<|end|>"
    [second] = demonstrations.at(1).group.completions
    assert tokenizer.decode(second.token_ids[second.trainable]) == "122"
    assert set(second.versions.tolist()) == {NO_POLICY}


@pytest.mark.parametrize(
    "row", [{"text": "x"}, {"prompt": "x", "completion": ""}, {"segments": [["x", True]]}]
)
def test_a_demonstration_without_anything_to_learn_is_refused(row: dict, tmp_path: Path, tokenizer):
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps(row))
    with pytest.raises(ValueError, match="row 0"):
        DemonstrationStream(PromptConfig(dataset=str(path)), tokenizer)
