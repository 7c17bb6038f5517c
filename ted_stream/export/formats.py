"""What the kept samples of a run are written as: a function per format."""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import csv

from ted_stream.export.manifest import write_rows
from ted_stream.export.origins import KeyKind, Origins
from ted_stream.export.rows import PLAIN, rows_of
from ted_stream.export.selected import Progress, Selected
from ted_stream.export.stream_index import read_index

__all__ = ["FORMATS", "Format", "Task"]

_UID, _HALVES = re.compile("[0-9A-Fa-f]{32}"), np.dtype("u8,u8")  # of DataComp


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is to be written.

    Attributes:
        selected: the samples that are kept.
        origins: of the same dataset.
        folders: of each stream's index, ``None`` where it was not given.
        all_samples: list those that are not kept, too.
        progress: of the stage ``rows``.
    """

    selected: Selected
    origins: Origins
    folders: Sequence[str | None]
    all_samples: bool
    progress: Progress

    def rows(self, *, all_samples: bool | None = None) -> Iterator[pa.RecordBatch]:
        """See `rows_of`."""
        every = self.all_samples if all_samples is None else all_samples
        return rows_of(self.selected, self.origins, all_samples=every, progress=self.progress)


@dataclass(frozen=True, kw_only=True)
class Format:
    """How something is written.

    Attributes:
        write: to a file; what it returns is to be told, a sentence each.
        holds: what the file holds, in a few words.
        lists_all: whether it can list samples that are not kept, and say so.
        counts: whether it says in how many epochs a sample was kept.
    """

    write: Callable[[BinaryIO, Task], list[str]]
    holds: str
    lists_all: bool = False
    counts: bool = False


def _parquet(file: BinaryIO, task: Task) -> list[str]:
    write_rows(file, task.selected, task.origins, all_samples=task.all_samples, progress=task.progress)
    return []


def _jsonl(file: BinaryIO, task: Task) -> list[str]:
    for batch in task.rows():
        lines = (json.dumps(row, ensure_ascii=False) for row in batch.to_pylist())
        file.write("".join(line + "\n" for line in lines).encode())
    return []


def _csv(file: BinaryIO, task: Task) -> list[str]:
    with csv.CSVWriter(file, PLAIN) as writer:
        for batch in task.rows():
            writer.write_batch(batch.cast(PLAIN))
    return []


def _datacomp(file: BinaryIO, task: Task) -> list[str]:
    _need(task, ("uid", "webdataset"), "uids of 32 hex digits")
    found = np.empty(task.selected.num_samples, _HALVES)
    begin = 0
    for batch in task.rows(all_samples=True):
        keys = batch.column("key").to_pylist()
        odd = next((at for at, key in enumerate(keys) if key is None or not _UID.fullmatch(key)), None)
        if odd is not None:
            raise ValueError(
                f"sample {begin + odd} has the key {keys[odd]!r}, but a DataComp uid has 32 hex digits; "
                "write the kept samples as parquet, csv or jsonl instead."
            )
        halves = np.frombuffer(bytes.fromhex("".join(keys)), ">u8").reshape(-1, 2)
        part = found[begin : begin + len(batch)]
        part["f0"], part["f1"] = halves.T
        begin += len(batch)
    order = np.lexsort((found["f1"], found["f0"]))
    found, keep = found[order], task.selected.keep[order]
    _refuse_shared(found, keep, "uid")
    kept = found[keep]
    np.save(file, kept[np.append(True, kept[1:] != kept[:-1])])
    return []


def _webdataset_keys(file: BinaryIO, task: Task) -> list[str]:
    return _lines(file, task, "key", ("webdataset",), "keys of WebDataset's samples")


def _files(file: BinaryIO, task: Task) -> list[str]:
    return _lines(file, task, "file", ("",), "a file for each sample")


def _lines(file: BinaryIO, task: Task, column: str, kinds: tuple[KeyKind, ...], wanted: str) -> list[str]:
    """A name per line, of which each is that of kept samples alone."""
    _need(task, kinds, wanted)
    hashes, begin = np.empty(task.selected.num_samples, np.int64), 0
    for batch in task.rows(all_samples=True):
        names = batch.column(column).to_pylist()
        hashes[begin : begin + len(batch)] = np.fromiter(map(hash, names), np.int64, len(names))
        kept = [name for name, keep in zip(names, batch.column("kept").to_pylist(), strict=True) if keep]
        broken = next((name for name in kept if name is None or len(name.splitlines()) != 1), "")
        if broken != "":
            raise ValueError(f"{column} {broken!r} is no line of text; write the kept samples as parquet or jsonl.")
        file.write("".join(f"{name}\n" for name in kept).encode())
        begin += len(batch)
    order = np.argsort(hashes, kind="stable")
    _refuse_shared(hashes[order], task.selected.keep[order], column)
    return []


def _need(task: Task, kinds: tuple[KeyKind, ...], wanted: str) -> None:
    """Raise ValueError if the samples have no such names."""
    for at, kind in enumerate(task.origins.kinds):
        if kind in kinds:
            continue
        stream = task.selected.layout.stream_keys[at]
        if kind is not None:
            known = "files alone" if not kind else f"keys that are of kind {kind!r}"
            told = f"its origins are {known}"
        elif task.folders[at] is None:
            told = "its dataset is not given: name it with --dataset (dataset=)"
        else:
            told = f"{task.folders[at]} has no origins.parquet, as `ted-stream prepare`, `ted-stream index` and "
            told += "ted_stream.export.write_origins write it"
        raise ValueError(
            f"this format takes {wanted}, which are not known of stream {stream}: {told}; or write the kept samples as "
            "parquet, csv or jsonl, which name stream, shard and position."
        )


def _refuse_shared(names: NDArray[np.generic], keep: NDArray[np.bool_], what: str) -> None:
    """Raise ValueError if one of the names, in ascending order, is that of a kept sample and of another."""
    shared = np.count_nonzero((names[1:] == names[:-1]) & (keep[1:] != keep[:-1]))
    if shared:
        raise ValueError(
            f"{shared} times a kept sample and one that is not have the same {what}, so that a list of them would not "
            "say which is meant; write the kept samples as parquet, csv or jsonl, which name their places."
        )


def _hf_indices(file: BinaryIO, task: Task) -> list[str]:
    np.save(file, task.selected.kept_ids())
    return []


def _streaming_index(file: BinaryIO, task: Task) -> list[str]:
    layout = task.selected.layout
    given = [at for at, folder in enumerate(task.folders) if folder is not None]
    if len(given) != 1:
        raise ValueError(
            f"an index is of one stream, but {len(given)} of the run's {len(layout.streams)} streams are given; name "
            "the folder of one with --dataset (dataset=)."
        )
    folder = task.folders[given[0]]
    assert folder is not None, "it is given"
    index = read_index(folder)
    first = sum(len(stream.shards) for stream in layout.streams[: given[0]])
    kept = task.selected.kept_per_shard[first : first + len(layout.streams[given[0]].shards)]
    shards = [shard for shard, count in zip(index["shards"], kept.tolist(), strict=True) if count]
    if not shards:
        raise ValueError(f"no sample of {folder} is kept, and an index without shards cannot be read.")
    listed, stay = sum(shard["samples"] for shard in shards), int(kept.sum())
    file.write(json.dumps({**index, "shards": shards}).encode())
    notes = [f"{len(shards):,} of {len(kept):,} shards have kept samples; the others are left out"]
    if listed > stay:
        notes.append(
            f"the shards that are left hold {listed:,} samples, {listed - stay:,} of which are not kept: an index "
            "leaves out whole shards alone; read them with the skip-list to leave out the rest"
        )
    return notes


FORMATS = {
    "parquet": Format(
        write=_parquet, holds="a manifest: a row per sample, checked when read", lists_all=True, counts=True
    ),
    "jsonl": Format(write=_jsonl, holds="the rows of a manifest as JSON lines", lists_all=True, counts=True),
    "csv": Format(write=_csv, holds="the rows of a manifest as text", lists_all=True, counts=True),
    "datacomp": Format(write=_datacomp, holds="sorted uids as DataComp's .npy, dtype u8,u8"),
    "webdataset-keys": Format(write=_webdataset_keys, holds="WebDataset's __key__ of each sample, a line each"),
    "hf-indices": Format(write=_hf_indices, holds="indices for datasets.Dataset.select, as .npy, int64"),
    "streaming-index": Format(write=_streaming_index, holds="an index.json without the shards that are pruned whole"),
    "files": Format(write=_files, holds="the file name of each sample, a line each"),
}
"""By the name that ``--to`` takes."""
