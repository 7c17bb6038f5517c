"""Where the samples of a dataset came from: a file beside its index, by which manifests name what the owner knows."""

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ted_stream.export.stream_index import layout_of_index, read_index, stream_folder
from ted_stream.files import join, reading, writing
from ted_stream.skip_list import DatasetLayout, StreamLayout
from ted_stream.skip_list.difference import first_difference, matching_streams

__all__ = [
    "CHUNK",
    "NAMES",
    "ORIGINS",
    "KeyKind",
    "Origin",
    "Origins",
    "find_origins",
    "write_origins",
    "write_origins_of",
]

ORIGINS = "origins.parquet"
CHUNK = 1 << 16
"""Samples whose rows are held at once."""
KeyKind = Literal["", "webdataset", "member", "line", "item", "index", "uid"]
"""What the keys are: nothing, since each file is a sample; WebDataset's keys; members of a tar; lines of a file,
from 1; items of a JSON array, from 1; indices into a dataset, from 0; the owner's own unique ids."""
Origin = tuple[str | None, str | None, int | None]
"""File, key and label of a sample; ``None`` where there is none."""
NAMES = pa.schema([pa.field("file", pa.string()), pa.field("key", pa.string()), pa.field("label", pa.int64())])
_KINDS: dict[str, KeyKind] = {kind: kind for kind in get_args(KeyKind)}
_VERSION = "1"
_PREFIX = "ted_stream.origins."


def write_origins(
    folder: str | os.PathLike[str], origins: Iterable[Origin], *, key: KeyKind = "", source: str = ""
) -> None:
    """Write ``origins.parquet`` beside the index of a streaming dataset; whole or not at all, in bounded memory.

    Columns: ``file`` (string, relative to the source), ``key`` (string, what names the sample within the file) and
    ``label`` (int64), each null where there is none, or none in UTF-8; a row per sample, in the order of the index.

    Args:
        folder: that holds ``index.json``, a local path or a URI.
        origins: of every sample, in the order of the shards.
        key: what the keys are.
        source: where the files are, for people.

    Raises:
        FileNotFoundError: if there is no index.
        ValueError: if there is not one origin per sample; nothing is written then.
    """
    write_origins_of(lambda: layout_of_index(read_index(folder)), folder, origins, key=key, source=source)


def write_origins_of(
    stream: Callable[[], StreamLayout],
    folder: str | os.PathLike[str],
    origins: Iterable[Origin],
    *,
    key: KeyKind = "",
    source: str = "",
) -> None:
    """As :func:`write_origins`, of a stream that is known once all its origins are."""
    rows, count = iter(origins), 0
    metadata = {"format_version": _VERSION, "key": key, "source": source}
    with (
        writing(join(folder, ORIGINS)) as file,
        # Without Arrow's own schema, beside which pyarrow's readers would not show what is added at the end.
        pq.ParquetWriter(file, NAMES, compression="zstd", write_page_checksum=True, store_schema=False) as writer,
    ):
        while chunk := list(itertools.islice(rows, CHUNK)):
            columns = [_column(c, f.type) for c, f in zip(zip(*chunk, strict=True), NAMES, strict=True)]
            writer.write_batch(pa.record_batch(columns, schema=NAMES))
            count += len(chunk)
        layout = stream()
        if count != layout.num_samples:
            raise ValueError(f"{count} origins do not fit the {layout.num_samples} samples of {os.fspath(folder)}.")
        metadata["fingerprint"] = layout.fingerprint
        writer.add_key_value_metadata({_PREFIX + name: text for name, text in metadata.items()})


def _column(values: Sequence[str | int | None], kind: pa.DataType) -> pa.Array:
    try:
        return pa.array(values, kind)
    except UnicodeEncodeError:
        return pa.array([value if _is_text(value) else None for value in values], kind)


def _is_text(value: object) -> bool:
    """Whether it has a UTF-8 encoding, as names of files need not."""
    try:
        str(value).encode()
    except UnicodeEncodeError:
        return False
    return True


@dataclass(frozen=True, kw_only=True)
class Origins:
    """Where the samples of a dataset's streams came from.

    Attributes:
        layout: of the dataset.
        paths: of each stream's file, ``None`` where there is none.
        kinds: what the keys in it are, ``None`` where there is none.
        sources: where its files are, for people; empty where that is not known.
    """

    layout: DatasetLayout
    paths: tuple[str | None, ...]
    kinds: tuple[KeyKind | None, ...]
    sources: tuple[str, ...]

    @staticmethod
    def unknown(layout: DatasetLayout) -> "Origins":
        """Of a dataset of which none are known."""
        nothing = (None,) * len(layout.streams)
        return Origins(layout=layout, paths=nothing, kinds=nothing, sources=("",) * len(layout.streams))

    @property
    def known(self) -> int:
        """How many of the streams have some."""
        return len(self.paths) - self.paths.count(None)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """``file``, ``key`` and ``label`` of all samples by ascending id, at most `CHUNK` of them at once.

        Raises:
            ValueError: if a file is damaged, or has not one row per sample.
        """
        for stream, path in zip(self.layout.streams, self.paths, strict=True):
            samples = stream.num_samples
            if path is None:
                for begin in range(0, samples, CHUNK):
                    size = min(CHUNK, samples - begin)
                    yield pa.record_batch([pa.nulls(size, field.type) for field in NAMES], schema=NAMES)
                continue
            with _opened_for(path, samples) as file:
                for batch in file.iter_batches(CHUNK, columns=NAMES.names, use_threads=False):
                    yield batch.cast(NAMES)

    def of(self, ids: NDArray[np.int64]) -> list[dict[str, Any]]:
        """``file``, ``key`` and ``label`` of a few samples.

        Args:
            ids: (n,) sample ids, in any order.

        Raises:
            ValueError: as :meth:`batches`.
        """
        order = np.argsort(ids, kind="stable")
        sorted_ids, found, begin = ids[order], list[dict[str, Any]](), 0
        for stream, path in zip(self.layout.streams, self.paths, strict=True):
            inside = (sorted_ids >= begin) & (sorted_ids < begin + stream.num_samples)
            rows, begin = sorted_ids[inside] - begin, begin + stream.num_samples
            if path is None:
                found += [dict.fromkeys(NAMES.names)] * len(rows)
            elif len(rows):
                found += _rows_of(path, rows, stream.num_samples)
        return [found[at] for at in np.argsort(order)]


def _rows_of(path: str, rows: NDArray[np.int64], samples: int) -> list[dict[str, Any]]:
    """Rows of a file, ascending; of its row groups those that hold some are read."""
    found, begin = [], 0
    with _opened_for(path, samples) as file:
        for group in range(file.num_row_groups):
            size = file.metadata.row_group(group).num_rows
            inside = rows[(rows >= begin) & (rows < begin + size)] - begin
            if len(inside):
                table = file.read_row_group(group, NAMES.names, use_threads=False)
                found += table.take(pa.array(inside)).cast(NAMES).to_pylist()
            begin += size
    return found


def find_origins(
    datasets: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], layout: DatasetLayout
) -> tuple[Origins, list[str | None]]:
    """The origins of a dataset of this layout, from the folders of its streams.

    Args:
        datasets: folders with ``index.json`` or with ``train/index.json``, local paths or URIs, in any order; those of
            some streams may be missing.
        layout: of the run.

    Returns:
        The origins, and the folder of each stream, ``None`` where it is not given.

    Raises:
        FileNotFoundError: if a folder has no index.
        ValueError: if a folder is none of the layout's streams, or its origins are of other shards.
    """
    given = [datasets] if isinstance(datasets, (str, os.PathLike)) else list(datasets)
    folders: list[str | None] = [None] * len(layout.streams)
    paths, kinds, sources = list(folders), list[KeyKind | None]([None] * len(folders)), [""] * len(folders)
    if given:
        found = [stream_folder(dataset) for dataset in given]
        named = DatasetLayout(streams=tuple(layout_of_index(read_index(folder)) for folder in found))
        for folder, stream, at in zip(found, named.streams, matching_streams(layout, named), strict=True):
            if at is None:
                alone = DatasetLayout(streams=(stream,))
                told = f": {first_difference(layout, alone)}" if len(layout.streams) == 1 else ""
                raise ValueError(
                    f"{folder} is none of the {len(layout.streams)} streams that the run read{told}. Name the dataset "
                    "that it was trained on."
                )
            folders[at] = folder
            known = _kind_and_source_of(join(folder, ORIGINS), stream.fingerprint)
            if known is not None:
                paths[at], (kinds[at], sources[at]) = join(folder, ORIGINS), known
    return Origins(layout=layout, paths=tuple(paths), kinds=tuple(kinds), sources=tuple(sources)), folders


def _kind_and_source_of(path: str, fingerprint: str) -> tuple[KeyKind, str] | None:
    """What the keys of a file are, and where its files; ``None`` if there is no such file."""
    try:
        with _opened(path) as file:
            raw = file.metadata.metadata or {}
    except FileNotFoundError:
        return None
    ours = {key.decode().removeprefix(_PREFIX): text.decode() for key, text in raw.items()}
    if ours.get("format_version") != _VERSION:
        raise ValueError(
            f"{path} has format version {ours.get('format_version')}, {_VERSION} is supported; write it again, or use "
            "the ted-stream release that wrote it."
        )
    if ours["fingerprint"] != fingerprint:
        raise ValueError(
            f"{path} is of shards with fingerprint {ours['fingerprint']}, the index beside it of {fingerprint}: the "
            "dataset was made anew since. Remove that file, or write it again."
        )
    return _KINDS[ours["key"]], ours["source"]


@contextmanager
def _opened(path: str) -> Iterator[pq.ParquetFile]:
    with reading(path) as file:
        try:
            yield pq.ParquetFile(file, page_checksum_verification=True)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{path} is damaged ({error}); write it again.") from error


@contextmanager
def _opened_for(path: str, samples: int) -> Iterator[pq.ParquetFile]:
    """With a row for each of so many samples, or refused."""
    with _opened(path) as file:
        if file.metadata.num_rows != samples:
            raise ValueError(f"{path} has {file.metadata.num_rows} rows for {samples} samples; write it again.")
        yield file
