"""A folder of shards as its index tells, without a reader: which samples it has, and their classes."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ted_stream.export.stream_index import INDEX, layout_of_index
from ted_stream.files import is_remote, join, read_bytes
from ted_stream.skip_list import DatasetLayout

__all__ = ["DESCRIPTION", "DatasetFolder", "find_splits", "open_dataset"]

DESCRIPTION = "dataset.json"
_LABELS = ("label", "labels", "class", "target")
_MOST_CLASSES = 1 << 24
_WHOLE_NUMBERS = {"int": "<i8", **{f"{sign}int{bits}": "" for sign in ("", "u") for bits in (8, 16, 32, 64)}}


@dataclass(frozen=True, kw_only=True, eq=False)
class DatasetFolder:
    """One split of a dataset, as one stream.

    Attributes:
        path: of the folder that holds ``index.json``; local or a URI.
        shards: the entries of the index.
        description: what ``dataset.json`` of ``ted-stream prepare`` holds; empty where there is none.
    """

    path: str
    shards: Sequence[Mapping[str, Any]] = field(repr=False)
    description: Mapping[str, Any] = field(repr=False)

    @cached_property
    def layout(self) -> DatasetLayout:
        """As skip-lists know it; a shard's content by the hashes of the index, unknown without."""
        return DatasetLayout(streams=(layout_of_index({"shards": self.shards}),))

    @property
    def class_names(self) -> tuple[str, ...]:
        """By the classes' numbers; empty where they are not known."""
        return tuple(map(str, self.description.get("classes", ())))

    def labels(self) -> NDArray[np.int64]:
        """(N,) classes by sample id, of a local folder of MDS shards: read by offsets, not sample by sample.

        Raises:
            ValueError: the samples have no such column, or it cannot be read without reading all; saying why.
            OSError: a shard cannot be read.
        """
        if is_remote(self.path):
            raise ValueError(f"{self.path} is remote, and the classes of all its samples would be a request each")
        found = np.concatenate([_labels_of(Path(self.path), shard) for shard in self.shards])
        if (highest := int(found.max(initial=0))) >= _MOST_CLASSES:
            raise ValueError(f"{self.path} has a label {highest}, which is no number of a class, or a damaged shard")
        return found


def find_splits(path: str | os.PathLike[str]) -> dict[str, DatasetFolder]:
    """The splits of a dataset, by name: those of a prepared one, or a folder with ``index.json`` as ``""``.

    Raises:
        FileNotFoundError: there is neither.
        ValueError: an index or a description is damaged.
    """
    description = _json(join(path, DESCRIPTION), {})
    names = {name: join(path, name) for name in description["samples"]} if description else {"": os.fspath(path)}
    splits = {name: _opened(folder, description) for name, folder in names.items()}
    found = {name: split for name, split in splits.items() if split is not None}
    if not found:
        raise FileNotFoundError(
            f"{os.fspath(path)} holds neither {INDEX} nor {DESCRIPTION}, so it is no dataset of shards; give the "
            "folder that `ted-stream prepare`, `ted-stream index` or streaming's writers made."
        )
    return found


def open_dataset(path: str | os.PathLike[str]) -> DatasetFolder:
    """What is trained on: the split ``train`` of a prepared dataset, or the folder itself.

    Raises:
        FileNotFoundError, ValueError: as :func:`find_splits`.
    """
    splits = find_splits(path)
    return splits["train"] if "train" in splits else next(iter(splits.values()))


def _opened(path: str, description: Mapping[str, Any]) -> DatasetFolder | None:
    index = _json(join(path, INDEX), None)
    if index is None:
        return None
    try:
        shards = index["shards"]
        assert all(
            shard["raw_data"]["basename"] and "hashes" in shard["raw_data"] and shard["samples"] >= 0
            for shard in shards
        )
    except (AssertionError, KeyError, TypeError) as error:
        raise ValueError(f"{join(path, INDEX)} is no index of shards ({error!r}); write it anew.") from error
    return DatasetFolder(path=path, shards=shards, description=description)


def _json(path: str, default: Any) -> Any:
    try:
        return json.loads(read_bytes(path))
    except FileNotFoundError:
        return default
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); write it anew.") from error


def _labels_of(folder: Path, shard: Mapping[str, Any]) -> NDArray[np.int64]:
    """Of a shard's samples; each begins with the sizes of its columns of variable size, as uint32."""
    columns = list(_columns(shard))
    at = next((at for at, (name, encoding, _) in enumerate(columns) if name in _LABELS and _dtype(encoding)), None)
    if shard.get("format") != "mds" or at is None:
        told = ", ".join(f"{name} ({encoding})" for name, encoding, _ in columns) or "unknown"
        raise ValueError(
            f"{folder} has no MDS column of whole numbers named {' or '.join(_LABELS)}; its columns are {told}"
        )
    name, samples = shard["raw_data"]["basename"], shard["samples"]
    if not (folder / name).exists():
        raise ValueError(f"{folder / name} is not there uncompressed")
    data = np.memmap(folder / name, np.uint8, "r")
    begins = data[4 : 4 + 4 * samples].view("<u4").astype(np.int64)
    sized = [size is None for _, _, size in columns]
    if begins.max(initial=0) + 4 * sum(sized) > len(data):
        raise ValueError(f"{folder / name} is damaged: a sample of it would begin beyond its end")
    sizes = data[begins[:, None] + np.arange(4 * sum(sized))].view("<u4") if any(sized) else None
    position = begins + 4 * sum(sized)
    for column in range(at):
        size = columns[column][2]
        if size is None:
            assert sizes is not None, "it has a column of variable size"
            position += sizes[:, sum(sized[:column])]
        else:
            position += size
    dtype = np.dtype(_dtype(columns[at][1]))
    try:
        return data[position[:, None] + np.arange(dtype.itemsize)].view(dtype)[:, 0].astype(np.int64)
    except IndexError as error:
        raise ValueError(f"{folder / name} is damaged: a sample of it would lie beyond its end") from error


def _columns(shard: Mapping[str, Any]) -> Iterator[tuple[str, str, int | None]]:
    """Name, encoding and bytes of each column, in the order of a sample's bytes."""
    names = ("column_names", "column_encodings", "column_sizes")
    return zip(*(shard.get(name) or () for name in names), strict=True)


def _dtype(encoding: str) -> str | None:
    """NumPy's name of a column's whole numbers; ``None`` of one that holds something else."""
    return _WHOLE_NUMBERS[encoding] or f"<{np.dtype(encoding).str[1:]}" if encoding in _WHOLE_NUMBERS else None
