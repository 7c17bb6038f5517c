"""The tasks of GLUE, from files of the form in which they are published, and as the hub has them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hub_folders import pair_tokenizer
from streaming import LocalDataset
from transformers import AutoTokenizer

from ted_stream import PrunedStreamingDataset
from ted_stream.cli.prepare import GlueTask
from ted_stream.pipelines.corpora import tokens
from ted_stream.pipelines.corpora.glue import TASKS, prepare_glue
from ted_stream.pipelines.corpora.prepared import read_description
from ted_stream.pipelines.corpora.tokens import train_tokenizer
from ted_stream.pipelines.training.text_batches import PaddingCollator

MNLI = (
    "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\tsentence2_parse"
    "\tsentence1\tsentence2\tlabel1"
)
STSB = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore"
# By task and file: heading, a row with {0} and {1} for texts and {2} for the label, and labels as they stand there.
TSV: dict[str, tuple[str | None, str, list[str]]] = {
    "cola": (None, "gj04\t{2}\t*\t{0}", ["0", "1"]),
    "sst2": ("sentence\tlabel", "{0}\t{2}", ["0", "1"]),
    "mrpc": ("\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String", "{2}\t70\t71\t{0}\t{1}", ["0", "1"]),
    "qqp": ("id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", "1\t2\t3\t{0}\t{1}\t{2}", ["0", "1"]),
    "stsb": (STSB, "0\tg\tf\t2012\t1\tnone\tnone\t{0}\t{1}\t{2}", ["0.000", "3.800", "5.000"]),
    "mnli": (
        MNLI + "\tgold_label",
        "0\t1\t1e\tfiction\t( a )\t( b )\t(ROOT)\t(ROOT)\t{0}\t{1}\tneutral\t{2}",
        ["entailment", "neutral", "contradiction"],
    ),
    "qnli": ("index\tquestion\tsentence\tlabel", "0\t{0}\t{1}\t{2}", ["entailment", "not_entailment"]),
    "rte": ("index\tsentence1\tsentence2\tlabel", "0\t{0}\t{1}\t{2}", ["entailment", "not_entailment"]),
    "wnli": ("index\tsentence1\tsentence2\tlabel", "0\t{0}\t{1}\t{2}", ["0", "1"]),
}
# mnli's files to test on have what five people said.
MNLI_DEV = (
    MNLI + "\tlabel2\tlabel3\tlabel4\tlabel5\tgold_label",
    "0\t1\t1e\tfiction\t( a )\t( b )\t(ROOT)\t(ROOT)\t{0}\t{1}\tneutral\tneutral\tneutral\tneutral\tneutral\t{2}",
)
ROWS = 12


def texts(at: int) -> tuple[str, str]:
    return f'the "{at}th one' + " more" * (at % 4), f"another of {at} 's kind"


def write_task(folder: Path, task: str) -> Path:
    """A task's files, with labels in turn."""
    heading, row, labels = TSV[task]
    folder.mkdir(exist_ok=True)
    for name in ("train", "dev_matched" if task == "mnli" else "dev"):
        if name == "dev_matched":
            heading, row = MNLI_DEV
        rows = [row.format(*texts(at), labels[at % len(labels)]) for at in range(ROWS)]
        (folder / f"{name}.tsv").write_text("\n".join(([heading] if heading else []) + rows) + "\n")
    return folder


def read(split: Path) -> list[dict[str, Any]]:
    shards: Any = LocalDataset(str(split))
    return [shards[at] for at in range(len(shards))]


def origins(split: Path) -> list[dict[str, Any]]:
    return pq.read_table(split / "origins.parquet").to_pylist()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer")
    pair_tokenizer((text for at in range(ROWS) for text in texts(at)), 300).save_pretrained(folder)
    return str(folder)


def test_the_command_names_all_tasks() -> None:
    assert [task.value for task in GlueTask] == list(TASKS) == list(TSV)


@pytest.mark.parametrize("task", TASKS)
def test_tasks_as_they_are_published(task: str, tokenizer: str, tmp_path: Path) -> None:
    prepare_glue(task, tmp_path / "out", source=write_task(tmp_path / "glue", task), tokenizer=tokenizer)
    description = read_description(tmp_path / "out")
    assert (description.kind, description.name) == ("texts", task)
    assert description.samples == {"train": ROWS, "test": ROWS}
    heading, _, labels = TSV[task]
    assert len(description.classes) == (0 if task == "stsb" else len(labels))
    saved = AutoTokenizer.from_pretrained(tmp_path / "out" / "tokenizer")
    seen = []
    for split in ("train", "test"):
        of_split = list(zip(read(tmp_path / "out" / split), origins(tmp_path / "out" / split), strict=True))
        lines = [int(origin["key"]) for _, origin in of_split]
        assert (lines == sorted(lines)) == (split == "test")
        for sample, origin in of_split:
            at = int(origin["key"]) - (1 if heading is None else 2)
            pair = texts(at)[: len(TASKS[task].texts)]
            expected = saved(*pair)
            assert sample["input_ids"].tolist() == expected["input_ids"]
            assert sample["token_type_ids"].tolist() == expected["token_type_ids"]
            assert sample["input_ids"].dtype == np.int16
            told = labels[at % len(labels)]
            if task == "stsb":
                assert (sample["labels"], origin["label"]) == (np.float32(told), None)
            else:
                index = int(told) if told.isdecimal() else description.classes.index(told)
                assert sample["labels"] == origin["label"] == index
            assert (
                origin["file"] == ("train" if split == "train" else "dev_matched" if task == "mnli" else "dev") + ".tsv"
            )
            seen.append((split, at))
    assert sorted(seen) == [(split, at) for split in ("test", "train") for at in range(ROWS)]


def test_batches_of_classes_and_of_scores(tokenizer: str, tmp_path: Path) -> None:
    for task, kind in (("rte", "int64"), ("stsb", "float32")):
        out = tmp_path / task
        description = prepare_glue(task, out, source=write_task(tmp_path / "glue", task), tokenizer=tokenizer)
        data = PrunedStreamingDataset(local=str(out), split="train", batch_size=4)
        batch = PaddingCollator(description.pad_id)([data[at] for at in range(4)])
        assert str(batch["labels"].dtype) == f"torch.{kind}"
        assert batch["labels"].shape == (4,)
        assert batch["input_ids"].shape == batch["token_type_ids"].shape == batch["attention_mask"].shape
        assert batch["token_type_ids"].max() == 1


HUB = {
    "sst2": ("sentence", "label"),
    "mnli": ("premise", "hypothesis", "label"),
    "stsb": ("sentence1", "sentence2", "label"),
}


@pytest.mark.parametrize("task", HUB)
def test_the_hubs_columns_as_json_lines(task: str, tokenizer: str, tmp_path: Path) -> None:
    """Are the same samples as those of the files that are published."""
    source = write_task(tmp_path / "glue", task)
    (tmp_path / "lines").mkdir()
    of_tsv = TSV[task][2]
    for name in ("train", "validation_matched" if task == "mnli" else "validation"):
        with (tmp_path / "lines" / f"{name}.jsonl").open("w") as file:
            for at in range(ROWS):
                label = float(of_tsv[at % 3]) if task == "stsb" else at % len(of_tsv)
                values = (*texts(at)[: len(HUB[task]) - 1], label)
                file.write(json.dumps({**dict(zip(HUB[task], values, strict=True)), "idx": at}) + "\n")
    for out, folder in (("a", source), ("b", tmp_path / "lines")):
        prepare_glue(task, tmp_path / out, source=folder, tokenizer=tokenizer)
    for split in ("train", "test"):
        shards = [(tmp_path / out / split / "shard.00000.mds").read_bytes() for out in "ab"]
        assert shards[0] == shards[1]


@pytest.mark.long
def test_a_dataset_of_the_hub(tokenizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with the configurations of the hub's, whose classes may lie in another order."""
    import datasets

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "hub"
    rows = {
        "sentence1": [texts(at)[0] for at in range(ROWS)],
        "sentence2": [texts(at)[1] for at in range(ROWS)],
        "label": [at % 2 for at in range(ROWS)],
    }
    text = datasets.Value("string")
    for task, names in {"rte": ["entailment", "not_entailment"], "wnli": ["entailment", "not_entailment"]}.items():
        features = datasets.Features({"sentence1": text, "sentence2": text, "label": datasets.ClassLabel(names=names)})
        (folder / task).mkdir(parents=True)
        for split in ("train", "validation"):
            made = datasets.Dataset.from_dict(rows, features=features)
            made.to_parquet(folder / task / f"{split}-00000-of-00001.parquet")
        hidden = datasets.Dataset.from_dict({**rows, "label": [-1] * ROWS}, features=features)
        hidden.to_parquet(folder / task / "test-00000-of-00001.parquet")
    card = "".join(
        f"- config_name: {task}\n  data_files:\n"
        + "".join(f"  - split: {split}\n    path: {task}/{split}-*\n" for split in ("train", "validation", "test"))
        for task in ("rte", "wnli")
    )
    (folder / "README.md").write_text(f"---\nconfigs:\n{card}---\n")
    for task in ("rte", "wnli"):  # the classes of wnli are here in the order of rte's
        out = tmp_path / task
        classes = prepare_glue(task, out, hub=str(folder), tokenizer=tokenizer).classes
        for sample, origin in zip(read(out / "train"), origins(out / "train"), strict=True):
            assert classes[sample["labels"]] == ("entailment", "not_entailment")[int(origin["key"]) % 2]
            assert origin["file"] is None
    with pytest.raises(ValueError, match=r"hub:rte, test, row 0: .* is -1, .* labels of -1 are not published"):
        prepare_glue("rte", tmp_path / "hidden", hub=f"{folder}:rte", test_split="test", tokenizer=tokenizer)


def test_a_share_of_the_training_labels_is_replaced(tokenizer: str, tmp_path: Path) -> None:
    source = tmp_path / "sst2"
    source.mkdir()
    lines = [f"one {at}\t{at % 2}" for at in range(200)]
    for name in ("train", "dev"):
        (source / f"{name}.tsv").write_text("\n".join(["sentence\tlabel", *lines]))
    told = prepare_glue("sst2", tmp_path / "out", source=source, tokenizer=tokenizer, noise=0.2)
    assert told.notes["replaced"] == 40
    assert told.notes["noise"] == 0.2
    found = {split: (read(tmp_path / "out" / split), origins(tmp_path / "out" / split)) for split in ("train", "test")}
    wrong = [sample["labels"] != origin["label"] for sample, origin in zip(*found["train"], strict=True)]
    assert sum(wrong) == 40
    assert 8 <= sum(wrong[:100]) <= 32, "spread over the stored order"  # 20 ± 2.8
    for _, places in found.values():
        assert all(place["label"] == int(place["key"]) % 2 for place in places)  # what it was
    assert all(sample["labels"] == origin["label"] for sample, origin in zip(*found["test"], strict=True))
    prepare_glue("sst2", tmp_path / "again", source=source, tokenizer=tokenizer, noise=0.2)
    prepare_glue("sst2", tmp_path / "other", source=source, tokenizer=tokenizer, noise=0.2, seed=1)
    labels = [[s["labels"] for s in read(tmp_path / out / "train")] for out in ("out", "again", "other")]
    assert labels[0] == labels[1] != labels[2]


def test_pairs_are_cut_and_told(tokenizer: str, tmp_path: Path) -> None:
    told: list[str] = []
    source = write_task(tmp_path / "rte", "rte")
    full = prepare_glue("rte", tmp_path / "full", source=source, tokenizer=tokenizer)
    lengths = [len(sample["input_ids"]) for sample in read(tmp_path / "full" / "train")]
    most = sorted(lengths)[ROWS // 2]
    cut = prepare_glue("rte", tmp_path / "cut", source=source, tokenizer=tokenizer, max_length=most, report=told.append)
    longer = sum(length > most for length in lengths)
    assert full.notes["counts"]["train"]["truncated"] == 0 < longer
    assert cut.notes["counts"]["train"]["truncated"] == longer
    assert told[0] == f"train: {longer} of {ROWS} samples were longer than {most} tokens and lost their end."
    assert max(len(sample["input_ids"]) for sample in read(tmp_path / "cut" / "train")) == most


def test_a_tokenizer_of_the_corpus_keeps_pairs_apart(tmp_path: Path) -> None:
    prepare_glue("rte", tmp_path / "out", source=write_task(tmp_path / "rte", "rte"), train_tokenizer_size=300)
    saved = AutoTokenizer.from_pretrained(tmp_path / "out" / "tokenizer")
    (origin, *_), (sample, *_) = origins(tmp_path / "out" / "train"), read(tmp_path / "out" / "train")
    first, second = texts(int(origin["key"]) - 2)
    assert saved.decode(sample["input_ids"]) == f"<bos>{first}<eos>{second}<eos>"
    assert sample["token_type_ids"].sum() == len(saved(second, add_special_tokens=False)["input_ids"]) + 1


@pytest.mark.long
def test_the_bytes_are_those_of_any_number_of_workers(
    tokenizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "CHUNK", 5)
    monkeypatch.setattr(tokens, "WORTH", 1)
    source = write_task(tmp_path / "mnli", "mnli")
    for workers in (1, 2):
        prepare_glue("mnli", tmp_path / str(workers), source=source, tokenizer=tokenizer, workers=workers, noise=0.25)
    one, two = (
        {str(file.relative_to(out)): file.read_bytes() for file in out.rglob("*") if file.is_file()}
        for out in (tmp_path / "1", tmp_path / "2")
    )
    assert one == two


# What is refused

BAD = {
    ("rte", "3\tx\ty"): "line 14: it has 3 columns, expected 4",
    ("rte", "3\tx\ty\tmaybe"): "line 14: its label 'label' is 'maybe', expected 0 or entailment, 1 or not_entailment",
    ("rte", "3\tx\ty\t2"): "line 14: its label 'label' is '2', expected",
    ("rte", "3\tx\ty\t-1"): "line 14: its label 'label' is '-1', expected",
    ("rte", "3\t\t \tentailment"): "line 14: nothing stands in 'sentence1' and 'sentence2'",
    ("rte", "\t\t\t"): "line 14: nothing stands in",
    ("cola", "gj04\tone\t\tx"): "line 13: its label 'label' is 'one', expected 0 or unacceptable",
    ("stsb", "0\tg\tf\t2012\t1\tnone\tnone\tx\ty\tnan"): "line 14: its score 'score' is 'nan', expected 0.0 to 5.0",
    ("stsb", "0\tg\tf\t2012\t1\tnone\tnone\tx\ty\t1e999"): "line 14: its score 'score' is '1e999', expected",
    ("stsb", "0\tg\tf\t2012\t1\tnone\tnone\tx\ty\t7"): "line 14: its score 'score' is '7', expected",
}


@pytest.mark.parametrize(("task", "line"), BAD)
def test_bad_lines_are_named_or_left_out(task: str, line: str, tokenizer: str, tmp_path: Path) -> None:
    source = write_task(tmp_path / "glue", task)
    with (source / "train.tsv").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=rf"train\.tsv, {BAD[task, line]}.*--skip-bad"):
        prepare_glue(task, tmp_path / "out", source=source, tokenizer=tokenizer)
    description = prepare_glue(task, tmp_path / "out", source=source, tokenizer=tokenizer, skip_bad=True)
    assert description.samples["train"] == ROWS
    listed = json.loads((tmp_path / "out" / "skipped.jsonl").read_text())
    assert f"line {listed['line']}: {listed['why']}".startswith(BAD[task, line])


def test_sources_and_settings_that_do_not_fit(tokenizer: str, tmp_path: Path) -> None:
    source = write_task(tmp_path / "glue", "rte")
    plain = tmp_path / "plain"
    train_tokenizer(["x"], 300).save_pretrained(str(plain))
    good: dict[str, Any] = {"source": source, "tokenizer": tokenizer}
    for task, settings, words in (
        ("ax", good, "no task 'ax'; there is cola, sst2"),
        ("qnli", good, r"train\.tsv, line 1: no column 'question' or 'sentence', which qnli has"),
        ("stsb", {**good, "noise": 0.1}, "stsb has scores, not classes"),
        ("rte", {**good, "noise": 1.0}, r"noise is 1\.0, but it must lie in \[0, 1\)"),
        ("rte", {**good, "max_length": 4}, "max_length is 4; .* at least 5 tokens"),
        ("rte", {**good, "tokenizer": str(plain)}, "the tokenizer puts nothing between two texts"),
        ("rte", {**good, "tokenizer": None}, "one of --tokenizer and --train-tokenizer"),
    ):
        with pytest.raises(ValueError, match=words):
            prepare_glue(task, tmp_path / "out", **settings)
    for settings, words in (
        ({**good, "source": tmp_path / "none"}, "none is no folder"),
        ({**good, "test_split": "dev_matched"}, r"has no dev_matched\.tsv or dev_matched\.jsonl"),
    ):
        with pytest.raises(FileNotFoundError, match=words):
            prepare_glue("rte", tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()
