import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from streaming import StreamingDataset
from transformers import AutoTokenizer

from ted_stream.pipelines.corpora.instructions import IGNORED, prepare_instructions, read_pairs, train_tokenizer
from ted_stream.pipelines.corpora.prepared import read_description
from ted_stream.pipelines.training.text_batches import PaddingCollator

PAIRS = [{"question": f"What is {a} plus {b}?", "answer": f"{a} + {b} = {a + b} ✓"} for a in range(6) for b in range(6)]
FIELDS: dict[str, Any] = {"prompt_field": "question", "response_field": "answer"}


def write_lines(path: Path, records: list) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def read_split(folder: Path) -> list[dict]:
    dataset = StreamingDataset(local=str(folder), batch_size=1)
    return [dataset[index] for index in range(dataset.num_samples)]


@pytest.fixture
def corpus(tmp_path) -> Path:
    return write_lines(tmp_path / "train.jsonl", PAIRS)


@pytest.fixture
def prepared(corpus, tmp_path) -> Path:
    prepare_instructions(tmp_path / "out", corpus, test_fraction=0.25, train_tokenizer_size=300, **FIELDS)
    return tmp_path / "out"


def test_targets_are_the_response_and_its_end(prepared):
    tokenizer = AutoTokenizer.from_pretrained(prepared / "tokenizer")
    samples = [*read_split(prepared / "train"), *read_split(prepared / "test")]
    seen = []
    for sample in samples:
        ids, labels = sample["input_ids"], sample["labels"]
        target = labels != IGNORED
        assert np.array_equal(ids[target], labels[target])
        assert ids[0] == tokenizer.bos_token_id
        assert ids[-1] == tokenizer.eos_token_id
        first = int(target.argmax())
        assert target[first:].all(), "prompt first, then targets to the end"
        prompt, response = tokenizer.decode(ids[1:first]), tokenizer.decode(ids[first:-1])
        seen.append({"question": prompt.removesuffix("\n"), "answer": response})
    assert sorted(map(str, seen)) == sorted(map(str, PAIRS))


def test_the_description_and_split(prepared):
    description = read_description(str(prepared))
    assert description.kind == "instructions"
    assert description.samples == {"train": 27, "test": 9}
    assert description.vocab_size <= 300
    assert read_split(prepared / "train")[0]["input_ids"].dtype == np.int16


def test_long_samples_are_cut_and_hopeless_ones_dropped_both_told(tmp_path):
    records = [
        {"prompt": "a", "response": "b"},
        {"prompt": "a", "response": "b" * 50},
        {"prompt": "a" * 50, "response": "b"},
        {"prompt": "c", "response": "d"},
    ]
    train, test = write_lines(tmp_path / "a.jsonl", records), write_lines(tmp_path / "b.jsonl", records[:1])
    told = []
    description = prepare_instructions(
        tmp_path / "out", train, test=test, train_tokenizer_size=259, max_length=20, report=told.append
    )
    assert description.samples["train"] == 3
    assert description.notes["counts"]["train"] == {"written": 3, "tokens": 30, "truncated": 1, "dropped": 1}
    assert "1 of 4 samples were longer than 20" in told[0]
    assert "1 of 4 samples were dropped" in told[1]
    assert "line 3" in told[1]
    assert max(len(s["input_ids"]) for s in read_split(tmp_path / "out" / "train")) == 20


def test_alpaca_is_recognised_in_arrays_and_lines(tmp_path):
    records = [
        {"instruction": "Add.", "input": "1, 2", "output": "3"},
        {"instruction": "Say hi.", "input": "", "output": "hi"},
    ]
    array = tmp_path / "alpaca.json"
    array.write_text(json.dumps(records))
    pairs = read_pairs(array)
    lines = read_pairs(write_lines(tmp_path / "alpaca.jsonl", records))
    assert [(p.prompt, p.response) for p in pairs] == [(p.prompt, p.response) for p in lines]
    assert pairs[0].prompt.endswith("### Instruction:\nAdd.\n\n### Input:\n1, 2\n\n### Response:\n")
    assert pairs[1].prompt.endswith("the request.\n\n### Instruction:\nSay hi.\n\n### Response:\n")
    assert [pair.response for pair in pairs] == ["3", "hi"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "x"}', "line 3: field 'response' is missing; present: 'prompt'"),
        ('{"prompt": "x", "response": "  "}', "line 3: field 'response' is empty"),
        ('{"prompt": "x", "response": 3}', "line 3: field 'response' is int, expected text"),
        ('{"prompt": null, "response": "y"}', "line 3: field 'prompt' is NoneType, expected text"),
        ('["x", "y"]', "line 3: expected a JSON object, found list"),
        ('{"prompt": ', "line 3: not JSON"),
    ],
)
def test_a_bad_line_is_named(line, message, tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text(f'{{"prompt": "a", "response": "b"}}\n\n{line}\n')
    with pytest.raises(ValueError, match=message):
        read_pairs(path)


def test_a_bad_item_of_an_array_is_named(tmp_path):
    path = tmp_path / "bad.json"
    path.write_text(json.dumps([{"instruction": "a", "output": "b"}, {"instruction": "a", "output": ""}]))
    with pytest.raises(ValueError, match="item 2: field 'output' is empty"):
        read_pairs(path)


def test_contradicting_settings_are_refused(corpus, tmp_path):
    with pytest.raises(ValueError, match="one of --tokenizer and --train-tokenizer"):
        prepare_instructions(tmp_path / "out", corpus, **FIELDS)
    with pytest.raises(ValueError, match="vocabulary of 100 is too small"):
        prepare_instructions(tmp_path / "out", corpus, train_tokenizer_size=100, **FIELDS)
    with pytest.raises(ValueError, match="no sample of train fits 3 tokens"):
        prepare_instructions(tmp_path / "out", corpus, train_tokenizer_size=300, max_length=3, **FIELDS)
    with pytest.raises(FileNotFoundError, match="nothing"):
        read_pairs(tmp_path / "nothing")
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_folder_is_used(prepared, corpus, tmp_path):
    description = prepare_instructions(tmp_path / "second", corpus, tokenizer=str(prepared / "tokenizer"), **FIELDS)
    assert description.vocab_size == read_description(str(prepared)).vocab_size


def test_any_text_survives_the_trained_tokenizer():
    tokenizer = train_tokenizer(["hello"], 300)
    text = "Grüße, 世界 🎉\n\ttab"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_collator_pads_and_passes_other_entries():
    samples = [
        {"input_ids": np.array([5, 6, 7], np.int16), "labels": np.array([-100, 6, 7], np.int16), "sample_id": 11},
        {"input_ids": np.array([8], np.int16), "labels": np.array([8], np.int16), "sample_id": 42},
    ]
    batch = PaddingCollator(pad_id=3)(samples)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 3, 3]]
    assert batch["labels"].tolist() == [[-100, 6, 7], [8, -100, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["sample_id"].tolist() == [11, 42]
    assert {value.dtype for value in batch.values()} == {torch.int64}
