import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from streaming import StreamingDataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from ted_stream.pipelines.corpora import tokens
from ted_stream.pipelines.corpora.forms import Forms, Pair
from ted_stream.pipelines.corpora.instructions import IGNORED, prepare_instructions
from ted_stream.pipelines.corpora.prepared import read_description
from ted_stream.pipelines.corpora.records import BadRecordError
from ted_stream.pipelines.corpora.tokens import embeddings_of, read_lengths, token_encoding, train_tokenizer
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
    samples = read_split(prepared / "train")
    assert samples[0]["input_ids"].dtype == np.int16
    assert read_lengths(prepared, "train").tolist() == [len(sample["input_ids"]) for sample in samples]


LONG = [
    {"prompt": "a", "response": "b"},
    {"prompt": "a", "response": "b" * 50},
    {"prompt": "a" * 50, "response": "b"},
    {"prompt": "c", "response": "d"},
]


def test_long_samples_are_cut_and_told_and_long_prompts_refused(tmp_path):
    train, test = write_lines(tmp_path / "a.jsonl", LONG), write_lines(tmp_path / "b.jsonl", LONG[:1])
    told: list[str] = []
    given: dict[str, Any] = {"test": test, "train_tokenizer_size": 259, "max_length": 20, "report": told.append}
    with pytest.raises(ValueError, match=r"a\.jsonl, line 3: .* fills 20 tokens, so no token of an answer is left"):
        prepare_instructions(tmp_path / "out", train, **given)
    description = prepare_instructions(tmp_path / "out", train, skip_bad=True, **given)
    assert description.samples["train"] == 3
    assert description.notes["counts"]["train"] == {"written": 3, "tokens": 30, "truncated": 1, "controlled": 0}
    assert description.notes["skipped"] == {"too long": 1}
    assert told[-2:] == [
        "train: 1 of 3 samples were longer than 20 tokens and lost their end.",
        "Records left out: 1 (1 too long); skipped.jsonl in the dataset's folder lists them.",
    ]
    assert max(len(s["input_ids"]) for s in read_split(tmp_path / "out" / "train")) == 20


def texts_of(out: Path, split: str = "train") -> list[tuple[str, str]]:
    """Prompt and response of each sample, sorted; special tokens are left out."""
    tokenizer = AutoTokenizer.from_pretrained(out / "tokenizer")
    found = []
    for sample in read_split(out / split):
        ids, target = sample["input_ids"], sample["labels"] != IGNORED
        found.append(tuple(tokenizer.decode(ids[of], skip_special_tokens=True) for of in (~target, target)))
    return sorted(found)


ALPACA = [
    {"instruction": "Add.", "input": "1, 2", "output": "3"},
    {"instruction": "Say hi.", "input": "", "output": "hi"},
]


def test_alpaca_is_recognised_in_arrays_and_lines(tmp_path):
    array = tmp_path / "alpaca.json"
    array.write_text(json.dumps(ALPACA))
    lines = write_lines(tmp_path / "alpaca.jsonl", ALPACA)
    for out, train, test in (("a", array, lines), ("b", lines, array)):
        description = prepare_instructions(tmp_path / out, train, test=test, train_tokenizer_size=300)
        assert description.notes["form"] == "alpaca"
        (with_input, three), (without, hi) = texts_of(tmp_path / out)
        assert with_input.endswith("### Instruction:\nAdd.\n\n### Input:\n1, 2\n\n### Response:\n")
        assert without.endswith("the request.\n\n### Instruction:\nSay hi.\n\n### Response:\n")
        assert (three, hi) == ("3", "hi")
        assert texts_of(tmp_path / out, "test") == texts_of(tmp_path / out)


def test_fields_that_are_named_are_not_taken_for_alpaca(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", ALPACA)
    fields: dict[str, Any] = {"prompt_field": "instruction", "response_field": "output", "test_fraction": 0.5}
    with pytest.raises(ValueError, match=r"line 1: field 'input' would not enter the text.*--ignore-field input"):
        prepare_instructions(tmp_path / "out", path, train_tokenizer_size=300, **fields)
    description = prepare_instructions(
        tmp_path / "out", path, train_tokenizer_size=300, ignored_fields=["input"], **fields
    )
    assert description.notes["form"] == "pair"


@pytest.mark.parametrize(
    "record",
    [
        {"instruction": "a", "output": "b", "system": "Be brief."},
        {"instruction": "a", "output": "b", "history": [["c", "d"]]},
        {"prompt": "a", "response": "b", "context": "It was so."},
        {"prompt": "a", "response": "b", "system_prompt": "Be brief."},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "context": "It was."},
        {"prompt": "a", "response": "b", "question": "c"},
    ],
    ids=lambda record: "-".join(record),
)
def test_what_an_answer_hangs_on_is_not_left_out(record):
    *_, name = record
    with pytest.raises(BadRecordError, match=f"field {name!r} would not enter the text"):
        Forms().text(record)
    Forms(ignored=(name,)).text(record)
    Forms().text({**record, name: None})


def test_a_field_that_repeats_a_turn_is_none_that_is_left_out():
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    Forms().text({"messages": turns, "instruction": "a", "question": "a", "response": "b"})


def test_thoughts_are_left_out_when_asked():
    record = {"prompt": "a", "response": "b", "thinking": "c"}
    with pytest.raises(BadRecordError, match=r"field 'thinking' cannot be put .* --ignore-field thinking"):
        Forms().text(record)
    assert Forms(ignored=("thinking",)).text(record) == Pair("a\n", "b")


def test_other_fields_that_are_left_out_are_told(tmp_path):
    records = [{"prompt": f"p{at}", "response": "r", "id": at, "source": None} for at in range(4)]
    told: list[str] = []
    path = write_lines(tmp_path / "a.jsonl", records)
    prepare_instructions(tmp_path / "out", path, train_tokenizer_size=300, report=told.append)
    assert told == ["Fields that enter no text, and the records that have them: 'id' of 3."]


@pytest.mark.parametrize("wrong", [0, False, [], 3])
def test_an_input_that_is_no_text_is_named(wrong):
    with pytest.raises(BadRecordError, match=f"field 'input' is {type(wrong).__name__}, expected text"):
        Forms().text({"instruction": "Is it even?", "input": wrong, "output": "yes"})


def test_a_field_that_is_there_twice_is_named(tmp_path):
    twice = '{"prompt": "p", "response": "a", "response": "b"}'
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"prompt": "p", "response": "r"}}\n{twice}\n')
    with pytest.raises(ValueError, match=r"line 2: an object in it has the field 'response' twice"):
        prepare_instructions(tmp_path / "out", path, train_tokenizer_size=300)
    path.write_text(f"[{twice}]")
    with pytest.raises(ValueError, match=r"a\.jsonl: an object in it has the field 'response' twice"):
        prepare_instructions(tmp_path / "out", path, train_tokenizer_size=300)


def test_special_tokens_of_a_text_are_not_doubled_and_those_within_are_told(tmp_path):
    plain = [{"prompt": f"p{at}", "response": f"r{at}"} for at in range(4)]
    marked = [{"prompt": f"<bos>p{at}", "response": f"r{at}<eos>"} for at in range(4)]
    within = [*plain[:3], {"prompt": "say <eos>", "response": "r3"}]
    write_lines(tmp_path / "plain.jsonl", plain)
    prepare_instructions(tmp_path / "plain", tmp_path / "plain.jsonl", train_tokenizer_size=300)
    given: dict[str, Any] = {"tokenizer": str(tmp_path / "plain" / "tokenizer")}
    told: list[str] = []
    path = write_lines(tmp_path / "marked.jsonl", marked)
    prepare_instructions(tmp_path / "marked", path, report=told.append, **given)
    assert told == []
    for one, two in zip(*(read_split(tmp_path / name / "train") for name in ("plain", "marked")), strict=True):
        assert one["input_ids"].tolist() == two["input_ids"].tolist()
        assert one["labels"].tolist() == two["labels"].tolist()
    path = write_lines(tmp_path / "within.jsonl", within)
    prepare_instructions(tmp_path / "within", path, test=path, report=told.append, **given)
    for split, sentence in zip(("train", "test"), told, strict=True):
        assert sentence.startswith(f"{split}: 1 of 4 texts hold special tokens of the tokenizer")


BAD = {
    '{"prompt": "x"}': "field 'response' is missing, .* present: 'prompt'",
    '{"prompt": "x", "response": "  "}': "field 'response' is empty",
    '{"prompt": "x", "response": 3}': "field 'response' is int, expected text",
    '{"prompt": null, "response": "y"}': "field 'prompt' is NoneType, expected text",
    '["x", "y"]': "expected a JSON object, found list",
    '{"prompt": ': r"not JSON \(Expecting value, at character 12\)",
    '{"instruction": "x", "output": "y"}': r"the form 'alpaca', but .*bad\.jsonl, line 1, 'pair'; keep one",
    '{"prompt": "x", "response": "y", "messages": []}': "fields 'messages' and 'prompt' and 'response', .* several",
}


@pytest.mark.parametrize("array", [False, True])
def test_half_a_character_is_named(array, tmp_path):
    records = [*({"prompt": f"p{at}", "response": "r"} for at in range(4)), {"prompt": "q\ud83d", "response": "r"}]
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(records) if array else "\n".join(map(json.dumps, records)))
    with pytest.raises(ValueError, match=r"5: '\\ud83d' in it is no character"):
        prepare_instructions(tmp_path / "out", path, train_tokenizer_size=300)
    description = prepare_instructions(tmp_path / "out", path, train_tokenizer_size=300, skip_bad=True)
    assert description.notes["skipped"] == {"not UTF-8": 1}


def test_a_prompt_that_asks_nothing_is_named(tmp_path):
    path = write_lines(tmp_path / "bad.jsonl", [{"prompt": " ", "response": "y"}])
    with pytest.raises(ValueError, match="line 1: field 'prompt' is empty, so nothing is asked"):
        prepare_instructions(tmp_path / "out", path, train_tokenizer_size=300)


@pytest.mark.parametrize("line", BAD)
def test_a_bad_line_is_named(line, tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text(f'{{"prompt": "a", "response": "b"}}\n\n{line}\n')
    with pytest.raises(ValueError, match=rf"bad\.jsonl, line 3: .*{BAD[line]}.*--skip-bad leaves such records out"):
        prepare_instructions(tmp_path / "out", path, train_tokenizer_size=300)


def test_a_line_of_other_bytes_is_named(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b'{"prompt": "a", "response": "b"}\n{"prompt": "\xff", "response": "b"}\n')
    with pytest.raises(ValueError, match=r"line 2: not UTF-8 text \(invalid start byte at byte 12\)"):
        prepare_instructions(tmp_path / "out", path, train_tokenizer_size=300)


def test_a_bad_item_of_an_array_is_named(tmp_path):
    path = tmp_path / "bad.json"
    path.write_text(json.dumps([{"instruction": "a", "output": "b"}, {"instruction": "a", "output": ""}]))
    with pytest.raises(ValueError, match="item 2: field 'output' is empty"):
        prepare_instructions(tmp_path / "out", path, train_tokenizer_size=300)


def test_bad_records_are_left_out_counted_and_listed_when_asked(tmp_path):
    """Of several files, with those that tokens tell of alone."""
    good = [{"prompt": f"p{at}", "response": f"r{at}"} for at in range(8)]
    first, second = tmp_path / "one" / "a.jsonl", tmp_path / "two" / "b.jsonl"
    for path in (first, second):
        path.parent.mkdir()
    lines = [json.dumps(record) for record in good]
    first.write_text("\n".join([*list(BAD)[:4], *lines[:4], json.dumps(LONG[2])]))
    second.write_text("\n".join([*lines[4:], *list(BAD)[4:]]))
    told: list[str] = []
    description = prepare_instructions(
        tmp_path / "out",
        [first, second],
        test_fraction=0.25,
        train_tokenizer_size=259,
        max_length=20,
        skip_bad=True,
        report=told.append,
    )
    found = [*texts_of(tmp_path / "out"), *texts_of(tmp_path / "out", "test")]
    assert sorted(found) == [(f"p{at}\n", f"r{at}") for at in range(8)]
    listed = [json.loads(line) for line in (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()]
    places = [(Path(entry["file"]), entry["line"]) for entry in listed]
    assert places == [*((first, at) for at in (1, 2, 3, 4, 9)), *((second, at) for at in (5, 6, 7, 8))]
    kinds = ["missing field", "empty", "wrong type", "wrong type", "too long"]
    kinds += ["no object", "not JSON", "other form", "several forms"]
    assert [entry["kind"] for entry in listed] == kinds
    assert description.notes["skipped"] == {**dict.fromkeys(kinds, 1), "wrong type": 2}
    assert sum(description.samples.values()) + len(listed) == 17
    assert told[-1].startswith("Records left out: 9 (2 wrong type, ")


def test_nothing_is_listed_where_nothing_is_left_out(corpus, tmp_path):
    description = prepare_instructions(tmp_path / "out", corpus, train_tokenizer_size=300, skip_bad=True, **FIELDS)
    assert not (tmp_path / "out" / "skipped.jsonl").exists()
    assert description.notes["skipped"] == {}


def test_contradicting_settings_are_refused(corpus, tmp_path):
    array = tmp_path / "array.json"
    array.write_text(json.dumps(PAIRS))
    trained: dict[str, Any] = {"train_tokenizer_size": 300}
    for train, settings, words in (
        (corpus, {}, "one of --tokenizer and --train-tokenizer"),
        (corpus, {"train_tokenizer_size": 100}, "vocabulary of 100 is too small"),
        (corpus, {**trained, "max_length": 3}, "fills 3 tokens"),
        (corpus, {**trained, "max_length": 3, "skip_bad": True}, "no sample of train is left"),
        (corpus, {**trained, "hub": "some/data"}, "one of --train and --hub"),
        (None, trained, "one of --train and --hub"),
        (None, {**trained, "hub": "some/data", "test": corpus}, "name a split of --hub with --test-split"),
        (corpus, {**trained, "test_split": "validation"}, "--test-split are of --hub"),
        (corpus, {**trained, "chat_template": "x.jinja"}, "--chat-template is for chats, .* form 'pair'"),
        ([corpus, array], trained, r"array\.json is a JSON array, .*train\.jsonl JSON lines"),
        ([corpus, corpus], trained, "is given twice"),
    ):
        with pytest.raises(ValueError, match=words):
            prepare_instructions(tmp_path / "out", train, **settings, **FIELDS)
    with pytest.raises(FileNotFoundError, match="nothing"):
        prepare_instructions(tmp_path / "out", tmp_path / "nothing", **trained)
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="holds no records"):
        prepare_instructions(tmp_path / "out", tmp_path / "empty.jsonl", **trained)
    assert not (tmp_path / "out").exists()


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.long
def test_the_bytes_are_those_of_any_number_of_workers(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(tokens, "CHUNK", 5)
    monkeypatch.setattr(tokens, "WORTH", 1)
    lines = [*corpus.read_text().splitlines(), '{"question": "' + "why " * 60 + '", "answer": "so"}', "{"]
    corpus.write_text("\n".join(lines))
    given: dict[str, Any] = {"train_tokenizer_size": 300, "max_length": 60, "skip_bad": True, **FIELDS}
    for workers in (1, 2):
        prepare_instructions(tmp_path / f"out{workers}", corpus, workers=workers, **given)
    one, two = (files_of(tmp_path / f"out{workers}") for workers in (1, 2))
    assert one == two
    assert {"skipped.jsonl", "train/origins.parquet"} <= one.keys()


def test_progress_is_told(corpus, tmp_path):
    corpus.write_text(corpus.read_text() + "{\n")
    told: list[tuple[str, int, int | None]] = []
    given: dict[str, Any] = {"train_tokenizer_size": 300, "skip_bad": True, **FIELDS}
    prepare_instructions(tmp_path / "out", corpus, progress=lambda *stage: told.append(stage), **given)
    assert told == [("read", 37, None), ("tokenize", 34, 36), ("tokenize", 2, 36)]


def test_a_dataset_of_the_hub(tmp_path, monkeypatch):
    """As its files lie there: a folder, here a local one, which load_dataset reads alike."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "data").mkdir()
    write_lines(tmp_path / "data" / "train.jsonl", [*ALPACA, {"instruction": "x", "output": ""}])
    write_lines(tmp_path / "data" / "validation.jsonl", ALPACA[:1])
    hub: dict[str, Any] = {"hub": str(tmp_path / "data"), "train_tokenizer_size": 300}
    with pytest.raises(ValueError, match="data, train, row 2: field 'output' is empty"):
        prepare_instructions(tmp_path / "out", test_split="validation", **hub)
    description = prepare_instructions(tmp_path / "out", test_split="validation", skip_bad=True, **hub)
    assert (description.name, description.samples) == ("data", {"train": 2, "test": 1})
    assert texts_of(tmp_path / "out", "test") == texts_of(tmp_path / "out")[:1]
    origins = pq.read_table(tmp_path / "out" / "train" / "origins.parquet")
    assert origins.schema.metadata[b"ted_stream.origins.key"] == b"index"
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out" / "tokenizer")
    for sample, origin in zip(read_split(tmp_path / "out" / "train"), origins.to_pylist(), strict=True):
        assert origin["file"] is None
        assert ALPACA[int(origin["key"])]["instruction"] in tokenizer.decode(sample["input_ids"])
    listed = json.loads((tmp_path / "out" / "skipped.jsonl").read_text())
    assert (listed["row"], listed["kind"]) == (2, "empty")
    with pytest.raises(ValueError, match="could not load the split 'none'"):
        prepare_instructions(tmp_path / "other", split="none", **hub)


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


def test_the_collator_needs_a_token_to_pad_with():
    nothing: Any = None
    with pytest.raises(TypeError, match=r"pad_id is None, .* take eos_token_id"):
        PaddingCollator(nothing)


@pytest.mark.parametrize(
    ("labels", "dtype"), [((1, 0), torch.int64), ((np.float32(3.8), np.float32(0)), torch.float32)]
)
def test_the_collator_leaves_labels_of_samples_as_they_are(labels, dtype):
    samples = [
        {"input_ids": np.array([5, 6], np.int16), "token_type_ids": np.array([0, 1], np.int8), "labels": labels[0]},
        {"input_ids": np.array([8], np.int16), "token_type_ids": np.array([1], np.int8), "labels": labels[1]},
    ]
    batch = PaddingCollator(pad_id=3)(samples)
    assert batch["input_ids"].tolist() == [[5, 6], [8, 3]]
    assert batch["token_type_ids"].tolist() == [[0, 1], [1, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1], [1, 0]]
    assert torch.equal(batch["labels"], torch.tensor(labels, dtype=dtype))
    assert batch["labels"].dtype == dtype


def test_the_collator_refuses_values_that_do_not_fit_their_tokens():
    samples = [{"input_ids": np.arange(n), "labels": np.arange(5 - n)} for n in (3, 2)]
    with pytest.raises(ValueError, match="sample 0 of a batch has 2 labels and 3 input_ids"):
        PaddingCollator(pad_id=3)(samples)


def test_ids_that_are_left_out_need_embeddings_too():
    tokenizer = train_tokenizer(["abc"], 259)
    assert (embeddings_of(tokenizer), token_encoding(tokenizer)) == (259, "ndarray:int16")
    words = {token: at for at, token in enumerate(tokenizer.get_vocab())} | {"<far>": 40_000}
    gapped = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(words, unk_token="<far>")))
    assert len(gapped) < 40_000
    assert (embeddings_of(gapped), token_encoding(gapped)) == (40_001, "ndarray:int32")
