"""The tasks of GLUE (Wang et al. 2019): sentences and pairs of them with a class, or a score, to tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .prepared import DESCRIPTION_FILE, Description, new_dataset
from .records import BadRecordError, Lines, Records, Refusals, good_records, hub_name, hub_records, json_records
from .tokens import (
    TOKENIZER_FOLDER,
    Encoded,
    Item,
    Split,
    chosen_tokenizer,
    embeddings_of,
    load_tokenizer,
    pad_id,
    token_encoding,
    write_tokens,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["HUB", "TASKS", "GlueTask", "prepare_glue"]

HUB = "nyu-mll/glue"
ENTAILMENT = ("entailment", "not_entailment")
TEST_FILES = ("dev", "validation", "dev_matched", "validation_matched")  # the first that is there
SCORES = (0.0, 5.0)  # of stsb, from unlike to equal

Progress = Callable[[str, int, int | None], None]  # stage, samples just done, total if known


@dataclass(frozen=True, kw_only=True)
class GlueTask:
    """A task, as it is published.

    Attributes:
        texts: the columns of one text or two, as the hub has them.
        classes: names in the hub's order; position is the class index. None for a score.
        columns: of the texts in the TSV files, where these have other names.
        label: the column of the label in the TSV files.
        heading: of TSV files that have none.
        test_split: the hub's split to test on, whose labels are published.
    """

    texts: tuple[str, ...] = ("sentence1", "sentence2")
    classes: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    label: str = "label"
    heading: tuple[str, ...] = ()
    test_split: str = "validation"


TASKS: Mapping[str, GlueTask] = {
    "cola": GlueTask(
        texts=("sentence",),
        classes=("unacceptable", "acceptable"),
        heading=("source", "label", "mark", "sentence"),
    ),
    "sst2": GlueTask(texts=("sentence",), classes=("negative", "positive")),
    "mrpc": GlueTask(classes=("not_equivalent", "equivalent"), columns=("#1 String", "#2 String"), label="Quality"),
    "qqp": GlueTask(texts=("question1", "question2"), classes=("not_duplicate", "duplicate"), label="is_duplicate"),
    "stsb": GlueTask(label="score"),
    "mnli": GlueTask(
        texts=("premise", "hypothesis"),
        classes=("entailment", "neutral", "contradiction"),
        columns=("sentence1", "sentence2"),
        label="gold_label",
        test_split="validation_matched",
    ),
    "qnli": GlueTask(texts=("question", "sentence"), classes=ENTAILMENT),
    "rte": GlueTask(classes=ENTAILMENT),
    "wnli": GlueTask(classes=tuple(reversed(ENTAILMENT))),
}


@dataclass(frozen=True)
class _Reader:
    """What a record of a task says, by the names that its source has for text and label."""

    texts: tuple[str, ...]
    label: str
    classes: tuple[str, ...]

    def read(self, record: object) -> tuple[tuple[str, ...], int | float]:
        """Texts and label.

        Raises:
            BadRecordError: one is missing, or is none.
        """
        if isinstance(record, BadRecordError):
            raise record
        if not isinstance(record, dict):
            raise BadRecordError("no object", f"expected a JSON object, found {type(record).__name__}.")
        for name in (*self.texts, self.label):
            if record.get(name) is None:
                present = ", ".join(repr(name) for name, value in record.items() if value is not None)
                raise BadRecordError("missing field", f"field {name!r} is missing; present: {present}.")
        texts = tuple(record[name] for name in self.texts)
        for name, text in zip(self.texts, texts, strict=True):
            if not isinstance(text, str):
                raise BadRecordError("wrong type", f"field {name!r} is {type(text).__name__}, expected text.")
        if not "".join(texts).strip():
            raise BadRecordError("empty", f"nothing stands in {' and '.join(map(repr, self.texts))}.")
        return texts, self._class(record[self.label]) if self.classes else self._score(record[self.label])

    def _class(self, label: object) -> int:
        if isinstance(label, str) and label in self.classes:
            return self.classes.index(label)
        number = int(label) if isinstance(label, str) and label.isdecimal() else label
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < len(self.classes):
            names = ", ".join(f"{number} or {name}" for number, name in enumerate(self.classes))
            hidden = "; labels of -1 are not published, take another split" if number == -1 else ""
            raise BadRecordError("label", f"its label {self.label!r} is {label!r}, expected {names}{hidden}.")
        return number

    def _score(self, label: object) -> float:
        try:
            score = float(label) if isinstance(label, (str, int, float)) else math.nan
        except (OverflowError, ValueError):
            score = math.nan
        low, high = SCORES
        if isinstance(label, bool) or not low <= score <= high:
            raise BadRecordError("label", f"its score {self.label!r} is {label!r}, expected {low} to {high}.")
        return score


@dataclass(frozen=True)
class _Encoder:
    """Texts with labels to tokens, in any process, with the tokenizer's own special tokens.

    Attributes:
        tokenizer: its folder.
        columns: of a sample, with their MDS encodings.
        max_length: the longest sample, in tokens.
    """

    tokenizer: str
    columns: Mapping[str, str]
    max_length: int

    def __call__(self, chunk: Sequence[Item]) -> list[Encoded | BadRecordError]:
        """Tokenize (texts, label); of two texts the longer loses its end first."""
        tokenizer: Any = load_tokenizer(self.tokenizer)
        texts = [list(column) for column in zip(*(texts for _, (texts, _) in chunk), strict=True)]
        whole = tokenizer(*texts, verbose=False)
        lengths = [len(ids) for ids in whole["input_ids"]]
        if max(lengths) > self.max_length:
            whole = tokenizer(*texts, truncation=True, max_length=self.max_length, verbose=False)
        dtype = np.dtype(self.columns["input_ids"].rpartition(":")[2])
        samples: list[Encoded | BadRecordError] = []
        for row, (_, (_, label)) in enumerate(chunk):
            values: dict[str, Any] = {"input_ids": np.array(whole["input_ids"][row], dtype), "labels": label}
            if "token_type_ids" in self.columns:
                values["token_type_ids"] = np.array(whole["token_type_ids"][row], np.int8)
            samples.append(Encoded(values, lengths[row] > self.max_length))
        return samples


def prepare_glue(
    task: str,
    out: str | Path,
    *,
    source: str | Path | None = None,
    hub: str = HUB,
    split: str = "train",
    test_split: str | None = None,
    tokenizer: str | None = None,
    train_tokenizer_size: int | None = None,
    max_length: int = 128,
    noise: float = 0.0,
    skip_bad: bool = False,
    workers: int = 1,
    seed: int = 0,
    size_limit: int = 1 << 22,
    overwrite: bool = False,
    report: Callable[[str], None] = lambda _: None,
    progress: Progress = lambda *_: None,
) -> Description:
    """Write a task of GLUE as a prepared dataset of tokens, with the tokenizer beside them.

    Samples have ``input_ids``, ``token_type_ids`` where the tokenizer makes them, and ``labels``: a class index, or of
    stsb a score of 0 to 5. They are tokenized as the tokenizer does with one text or two, special tokens included.
    The training split is stored in a seeded random order, the test split as it lies there.

    Args:
        task: one of `TASKS`.
        out: the dataset's folder; the tokenizer is saved in its ``tokenizer/``.
        source: a folder with the task's TSV files as they are published, or the hub's columns as JSON lines:
            ``train`` and ``dev`` or ``validation`` (of mnli ``dev_matched``), each ``.tsv`` or ``.jsonl``.
        hub: without a source, a dataset that ``datasets`` can load, ``name`` (with the task as configuration) or
            ``name:config``.
        split: to train on: of the hub, or a file's name without its end.
        test_split: to test on; None takes the one whose labels are published, of mnli the matched one.
        tokenizer: a folder or a name on the hub; else:
        train_tokenizer_size: size of a byte-level BPE tokenizer trained on the training split.
        max_length: longest sample in tokens; longer ones are cut, and counted.
        noise: share in [0, 1) of the training labels that are replaced by another class, by ``seed``. What each was
            stands in ``origins.parquet`` beside the shards.
        skip_bad: leave records out that cannot be used, count and list them; else the first is refused.
        workers: processes that tokenize, at most; the dataset is the same for any number.
        seed: of the stored order and of the replaced labels.
        size_limit: bytes per shard.
        overwrite: replace a finished dataset.
        report: told, in sentences, what was cut and left out.
        progress: told the stage, how many records were just done, and the total where known.

    Raises:
        FileExistsError: ``out`` is taken (see `new_dataset`).
        FileNotFoundError: a file of the source does not exist.
        ValueError: a record cannot be used, or a setting.
    """
    if task not in TASKS:
        raise ValueError(f"no task {task!r}; there is {', '.join(TASKS)}.")
    from .regimes import Regime  # not in workers, since it imports torch

    about, regime = TASKS[task], Regime(noise=noise)
    if noise and not about.classes:
        raise ValueError(f"{task} has scores, not classes, so no label can be replaced by another; set noise to 0.")
    refusals = Refusals(skip=skip_bad)
    with new_dataset(out, overwrite=overwrite) as folder:
        corpora = {}
        for of, name in (("train", split), ("test", test_split)):
            records, reader = _records(task, about, source, hub, name)
            corpora[of] = _checked(records, reader, refusals, lambda count: progress("read", count, None))
        chosen = chosen_tokenizer(tokenizer, train_tokenizer_size, corpora["train"].texts)
        if train_tokenizer_size is not None:
            _bound_texts(chosen)
        _check_tokenizer(chosen, len(about.texts), max_length)
        chosen.save_pretrained(str(folder / TOKENIZER_FOLDER))
        columns = {"input_ids": token_encoding(chosen), "labels": "int" if about.classes else "float32"}
        if "token_type_ids" in chosen.model_input_names:
            columns["token_type_ids"] = "ndarray:int8"
        encode = _Encoder(str(folder / TOKENIZER_FOLDER), columns, max_length)
        told = corpora["train"].labels
        order = np.random.default_rng(seed).permutation(len(told))
        # Drawn apart from the order, or wrong labels would come first.
        labels = regime.relabelled(told, len(about.classes), np.random.default_rng([seed, 1])) if noise else told
        splits = {
            "train": corpora["train"].split(order, labels),
            "test": corpora["test"].split(np.arange(len(corpora["test"].labels)), corpora["test"].labels),
        }
        counts = write_tokens(
            folder,
            splits,
            encode,
            columns,
            refusals=refusals,
            max_length=max_length,
            workers=workers,
            size_limit=size_limit,
            report=report,
            progress=partial(progress, "tokenize"),
        )
        description = Description(
            kind="texts",
            name=task,
            samples={of: count["written"] for of, count in counts.items()},
            classes=about.classes,
            vocab_size=embeddings_of(chosen),
            max_length=max_length,
            pad_id=pad_id(chosen),
            notes={
                "seed": seed,
                "source": str(source) if source is not None else hub,
                "tokenizer": tokenizer or "trained",
                "noise": noise,
                "replaced": int((labels != told).sum()),
                "counts": counts,
                "skipped": refusals.finish(folder, report),
            },
        )
        (folder / DESCRIPTION_FILE).write_text(description.to_json())
        return description


@dataclass(frozen=True)
class _Corpus:
    """The good records of a split, ascending, and their labels."""

    records: Records
    reader: _Reader
    good: np.ndarray
    labels: np.ndarray

    def split(self, order: np.ndarray, labels: np.ndarray) -> Split:
        """Texts with these labels, in this order of the good records; the origins have the source's own labels."""
        label = self._told if self.reader.classes else lambda _: None
        return Split(self.records, self._items(order, labels), len(order), label)

    def _items(self, order: np.ndarray, labels: np.ndarray) -> Iterator[Item]:
        for row, (at, record) in zip(order, self.records.read(self.good[order].tolist()), strict=True):
            yield at, (self.reader.read(record)[0], labels[row].item())

    def _told(self, at: int) -> int:
        return int(self.labels[np.searchsorted(self.good, at)])

    def texts(self) -> Iterator[str]:
        """All texts, to train a tokenizer on."""
        for _, record in self.records.read(self.good.tolist()):
            yield from self.reader.read(record)[0]


def _checked(records: Records, reader: _Reader, refusals: Refusals, progress: Callable[[int], None]) -> _Corpus:
    labels: list[int | float] = []
    good = good_records(records, lambda _, record: labels.append(reader.read(record)[1]), refusals, progress)
    return _Corpus(records, reader, good, np.array(labels))


def _records(
    task: str, about: GlueTask, source: str | Path | None, hub: str, split: str | None
) -> tuple[Records, _Reader]:
    """The records of a split, and what reads them."""
    as_on_hub = _Reader(about.texts, "label", about.classes)
    if source is None:
        name, config = hub_name(hub)
        return hub_records(name, config or task, split or about.test_split), as_on_hub
    folder = Path(source)
    if not folder.is_dir():
        raise FileNotFoundError(f"the source {source} is no folder; name one with the files of {task}.")
    names = [f"{name}{end}" for name in ([split] if split else TEST_FILES) for end in (".tsv", ".jsonl")]
    path = next((folder / name for name in names if (folder / name).is_file()), None)
    if path is None:
        raise FileNotFoundError(f"{source} has no {' or '.join(names)}.")
    if path.suffix == ".jsonl":
        return json_records([path]), as_on_hub
    reader = _Reader(about.columns or about.texts, about.label, about.classes)
    heading = about.heading
    if not heading:
        with path.open(encoding="utf-8-sig") as file:  # mrpc's begins with a byte order mark
            heading = tuple(file.readline().rstrip("\r\n").split("\t"))
        missing = [name for name in (*reader.texts, reader.label) if name not in heading]
        if missing:
            raise ValueError(
                f"{path}, line 1: no column {' or '.join(map(repr, missing))}, which {task} has; present: "
                f"{', '.join(map(repr, heading))}."
            )
    records = Lines([path], _Cells(heading), heading=0 if about.heading else 1)
    if not len(records):
        raise ValueError(f"{path} holds no records.")
    return records, reader


@dataclass(frozen=True)
class _Cells:
    """The cells of a line of TSV, by column; GLUE's quotes are text."""

    heading: tuple[str, ...]

    def __call__(self, line: str) -> dict[str, str]:
        cells = line.split("\t")
        if len(cells) != len(self.heading):
            raise BadRecordError("columns", f"it has {len(cells)} columns, expected {len(self.heading)}.")
        return dict(zip(self.heading, cells, strict=True))


def _bound_texts(tokenizer: Any) -> None:
    """Let a tokenizer put its special tokens around one text and between two, as BERT's does."""
    from tokenizers.processors import TemplateProcessing

    special = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<bos>", "<eos>")]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A <eos>", pair="<bos> $A <eos> $B:1 <eos>:1", special_tokens=special
    )


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase, texts: int, max_length: int) -> None:
    pad_id(tokenizer)
    least = tokenizer.num_special_tokens_to_add(pair=texts == 2) + texts
    if max_length < least:
        raise ValueError(f"max_length is {max_length}; with its special tokens a sample needs at least {least} tokens.")
    if texts == 2 and tokenizer.num_special_tokens_to_add(pair=True) <= tokenizer.num_special_tokens_to_add(pair=False):
        raise ValueError(
            "the tokenizer puts nothing between two texts, so a model could not tell them apart; name one of a model "
            "for pairs, such as BERT's or RoBERTa's."
        )
