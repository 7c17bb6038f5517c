"""What a run kept as a dataset of its own: the kept samples alone, in the order of the dataset, byte for byte.

Every shard of which something is kept becomes one file, by `copy_shard`, which any process of any machine may call.
The order in which streaming shuffles hangs on the sizes of shards, so that these stay what they are in a pruned epoch.
"""

import errno
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyroaring import FrozenBitMap

from ted_stream.export.origins import Origin, Origins, find_origins, write_origins_of
from ted_stream.export.run_files import check_outside
from ted_stream.export.selected import Progress, Selected, Written, select
from ted_stream.export.selection import Selection
from ted_stream.export.shard_copying import Copied, ShardCopy, copy_shard
from ted_stream.export.shard_targets import TARGETS
from ted_stream.export.stream_index import INDEX, file_of, layout_of_index, may_be_there, read_index
from ted_stream.files import exists, is_remote, join, read_bytes, stays_within, write_bytes
from ted_stream.folders import DATASET, differing, resumable_folder
from ted_stream.processes import in_order
from ted_stream.skip_list import DatasetLayout, SkipList, write_skip_list

__all__ = ["COPIES", "METADATA", "MapShards", "Materialised", "materialise"]

COPIES = tuple(TARGETS)
"""The formats of a copied dataset."""
METADATA = "materialised.json"
_KIND = "exported dataset"
_VERSION = 1
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_WEIGHTS, _RECORDS, _PLAN = "weights.parquet", "_records", "plan.json"

MapShards = Callable[[Callable[[ShardCopy], Copied], Iterable[ShardCopy]], Iterable[Copied]]
"""Calls a function for every shard, anywhere, and gives what it returns, in any order."""


@dataclass(frozen=True, kw_only=True)
class Materialised(Written):
    """What :func:`materialise` wrote.

    Attributes:
        shards: files of samples.
        bytes: of these files.
        weights: path or URI of the skip-list of their weights; ``None`` where all weigh alike.
    """

    shards: int
    bytes: int
    weights: str | None


@dataclass(frozen=True, kw_only=True, eq=False)
class _Source:
    """What is copied: the streams of a run and their indices, where something of them is kept.

    Attributes:
        selected: the samples that are kept.
        origins: of the dataset.
        folders: of each stream's index.
        indices: of each stream.
        streams: those of which something is kept.
    """

    selected: Selected
    origins: Origins
    folders: Sequence[str | None]
    indices: Mapping[int, Mapping[str, Any]] = field(repr=False)
    streams: tuple[int, ...]

    def folder_of(self, place: str, stream: int) -> str:
        """Where the copy of a stream goes: one lies at the place itself, several in folders of their own."""
        return place if len(self.selected.layout.streams) == 1 else join(place, f"stream-{stream}")

    def files(self, to: str) -> Iterator[tuple[int, int, Mapping[str, Any], str]]:
        """The same as `shards`, with the name of the file that becomes of each, within the copy of its stream."""
        streams = [stream for stream, _, _ in self.shards()]
        counts, done = Counter(streams), Counter[int]()
        for stream, shard, entry in self.shards():
            name = TARGETS[to].name(entry, done[stream], counts[stream])
            if not stays_within(name):
                raise ValueError(f"the index of {self.folders[stream]} names {name!r}, which is not within its folder.")
            yield stream, shard, entry, name
            done[stream] += 1

    def shards(self) -> Iterator[tuple[int, int, Mapping[str, Any]]]:
        """Stream, number in the layout, and entry in the index of each shard of which something is kept."""
        kept, first = self.selected.kept_per_shard, 0
        for stream, of in enumerate(self.selected.layout.streams):
            for at in range(len(of.shards)):
                if kept[first + at]:
                    yield stream, first + at, self.indices[stream]["shards"][at]
            first += len(of.shards)


def materialise(
    run: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    to: str = "mds",
    selection: Selection | None = None,
    dataset: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
    weights: bool = True,
    workers: int = 1,
    overwrite: bool = False,
    map_shards: MapShards | None = None,
    progress: Progress = lambda *_: None,
) -> Materialised:
    """Write what a run kept as a new dataset, shard by shard; memory is that of `select`, and of a few shards a worker.

    Interrupted, the same call goes on with the shards that are there, once their bytes are what they should be; the
    result is the one of a call that was not. A local place is there only when all of it is, and what is unfinished is
    a hidden folder beside it. In an object store the index and ``materialised.json`` come last.

    Args:
        run: its folder, a local path or a URI.
        out: folder or URI of the new dataset.
        to: the format, one of `COPIES`: ``mds``, streaming's shards; ``webdataset``, tars; ``hf``, Parquet files.
        selection: which samples; by default those that the last pruned epoch kept.
        dataset: the folder of the dataset that the run read, or those of its streams, local paths or URIs.
        weights: where the kept samples weigh unlike each other, write that beside ``mds`` as a skip-list of the new
            dataset that keeps all, and refuse other formats; false leaves the weights out.
        workers: processes that copy.
        overwrite: replace a local dataset that was made so, or one that another call began.
        map_shards: what runs `copy_shard` for each shard, in place of the workers.
        progress: of the stages ``lists`` and ``copy``, in samples.

    Raises:
        FileExistsError: if there is something else already, or it was begun with something else.
        FileNotFoundError: if the folder is none of a run, the dataset none of streaming's, or a shard is missing.
        ValueError: if there is no such format or selection, the dataset is another than the run's, not all of it is
            given, or cannot be copied so, a shard is damaged, or the place is one of the run's own files, or is, lies
            within or holds a folder of the dataset.
        OSError: if the place cannot be written to.
    """
    if to not in TARGETS:
        raise ValueError(f"there is no format {to!r} of datasets; there is {', '.join(TARGETS)}.")
    check_outside(run, out)
    place = os.fspath(out)
    source = _source(select(run, selection, count=False, progress=progress), dataset, to)
    weighed = weights and source.selected.weights is not None
    if weighed and to != "mds":
        raise ValueError(
            f"the samples that {source.selected.method} kept weigh unlike each other in the loss, which --to {to} "
            "cannot hold: training would count them all alike. Use --to mds, which writes the weights beside them, or "
            "leave them out with --no-weights (weights=False)."
        )
    _check_apart(place, source)
    plan = _plan(source, to, weighed)
    with _telling(place), _begun(place, plan, overwrite) as (folder, records):
        copies = _copies(source, to, folder, records, _digest(plan))
        if map_shards is None:
            map_shards = partial(_in_processes, workers=workers)
        done = _copy(map_shards, copies, source.selected.kept_per_shard, progress)
        notes = _finish(source, to, folder, place, done, plan, weighed)
    return Materialised(
        path=place,
        to=to,
        selection=source.selected.selection,
        epoch=source.selected.epoch,
        kept=source.selected.num_kept,
        samples=source.selected.num_samples,
        shards=len(done),
        bytes=sum(copied.bytes for copied in done),
        weights=join(place, _WEIGHTS) if weighed else None,
        finished=source.selected.finished,
        notes=tuple(notes),
    )


def _source(selected: Selected, dataset: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], to: str) -> _Source:
    """What is to be copied, once it is clear that it can be."""
    layout = selected.layout
    origins, found = find_origins(dataset, layout)
    # From the root, for what copies may have another working folder.
    folders = [path if path is None or is_remote(path) else os.path.abspath(path) for path in found]
    first = np.cumsum([0, *(len(stream.shards) for stream in layout.streams[:-1])])
    kept = np.add.reduceat(selected.kept_per_shard, first)
    streams = tuple(np.flatnonzero(kept).tolist())
    indices: dict[int, Mapping[str, Any]] = {}
    for stream in streams:
        folder = folders[stream]
        if folder is None:
            given = [folder for folder in folders if folder is not None]
            raise ValueError(
                f"{kept[stream]:,} kept samples are of stream {layout.stream_keys[stream]}, {stream + 1} of "
                f"{len(folders)} of the run, whose folder is not given"
                f"{f' beside {given[0]}' if given else ''}: name it with --dataset (dataset=)."
            )
        indices[stream] = read_index(folder)
    source = _Source(selected=selected, origins=origins, folders=folders, indices=indices, streams=streams)
    missing: list[str] = []
    for stream, _, entry in source.shards():
        TARGETS[to].check(entry)
        folder = folders[stream]
        assert folder is not None, "something of it is kept"
        if not may_be_there(folder, file_of(folder, entry)):
            missing.append(join(folder, entry["raw_data"]["basename"]))
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} shards with kept samples are missing, {missing[0]} first. Restore them, or name with "
            "--dataset (dataset=) the folder or URI that has all of them."
        )
    return source


def _check_apart(place: str, source: _Source) -> None:
    """Refuse a local place where the copy would replace what is copied, or lie among it."""
    if is_remote(place):
        return
    path = os.path.realpath(place)
    for folder in source.folders:
        if folder is None or is_remote(folder):
            continue
        other = os.path.realpath(folder)
        if os.path.commonpath((path, other)) in (path, other):
            raise ValueError(
                f"{place} is, holds or lies within {folder}, which is what is copied; name a place apart from it."
            )


def _plan(source: _Source, to: str, weighed: bool) -> dict[str, Any]:
    """All that decides what is written."""
    selected = source.selected
    # Which other forms of the same dataset, such as compressed ones, have not.
    files = [[stream, name] for stream, _, _, name in source.files(to)]
    return {
        "version": _VERSION,
        "to": to,
        "run": selected.run,
        "method": selected.method,
        "settings": selected.settings,
        "selection": json.loads(selected.selection.to_json()),
        "epoch": selected.epoch,
        "skip_list": selected.skip_list_digest,
        "fingerprint": selected.layout.fingerprint,
        "samples": selected.num_samples,
        "kept": selected.num_kept,
        "kept_samples": hashlib.sha256(np.packbits(selected.keep).tobytes()).hexdigest(),
        "files": _digest(files),
        "weights": _WEIGHTS if weighed else None,
    }


def _digest(values: object) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


@contextmanager
def _telling(place: str) -> Iterator[None]:
    """Say what is to be done where a disk is full."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise OSError(
            f"{place} cannot be written whole: {error.strerror}. Make room, and the same command goes on with what is "
            "written; or name another place."
        ) from error


@contextmanager
def _begun(place: str, plan: Mapping[str, Any], overwrite: bool) -> Iterator[tuple[str, str]]:
    """The folder that files are written to, and that of what is written down of them."""
    if is_remote(place):
        _begin_remotely(place, plan, overwrite)
        yield place, join(place, _RECORDS)
        return
    with resumable_folder(
        place,
        plan,
        kind=_KIND,
        is_finished=lambda folder: (folder / METADATA).exists(),
        overwrite=overwrite,
    ) as work:
        yield str(work / DATASET), str(work / _RECORDS)
        for path in (work / DATASET).rglob(".*.tmp"):  # which a killed process did not get to the end of
            path.unlink()


def _begin_remotely(place: str, plan: Mapping[str, Any], overwrite: bool) -> None:
    """Refuse a place in an object store that is taken, and write down there what is begun.

    Nothing can be deleted there, or appear at once, so that nothing is replaced.
    """
    if overwrite:
        raise ValueError(
            f"{place} is in an object store, where nothing is overwritten: readers would meet shards of both datasets "
            "meanwhile. Name another place, or empty this one by the store's own tools."
        )
    if exists(join(place, METADATA)):
        raise FileExistsError(f"{place} holds a finished dataset; name another place.")
    file = join(place, f"{_RECORDS}/{_PLAN}")
    try:
        earlier = json.loads(read_bytes(file))
    except FileNotFoundError:
        if exists(join(place, INDEX)):
            raise FileExistsError(f"{place} holds a dataset of another kind; name another place.") from None
        write_bytes(file, json.dumps(plan).encode())
        return
    except ValueError as error:
        raise FileExistsError(f"{file} is damaged ({error}); name another place than {place}.") from error
    if earlier != plan:
        raise FileExistsError(
            f"{place} holds an unfinished {_KIND} that differs in: {differing(plan, earlier)}. Export what it was "
            "begun with to go on, or name another place."
        )


def _copies(source: _Source, to: str, folder: str, records: str, plan: str) -> Iterator[ShardCopy]:
    """What is to be done for each shard, made as it is asked for."""
    layout = source.selected.layout
    for number, (stream, shard, entry, name) in enumerate(source.files(to)):
        first = int(layout.shard_offsets[shard])
        known = layout.shards[shard].content
        yield ShardCopy(
            number=number,
            to=to,
            folder=str(source.folders[stream]),
            entry=entry,
            content=known or layout_of_index({"shards": [entry]}).shards[0].content,
            keep=np.packbits(source.selected.keep[first : first + entry["samples"]]).tobytes(),
            first_id=first,
            target=join(source.folder_of(folder, stream), name),
            record=join(records, f"{number:06}.json"),
            plan=plan,
        )


def _in_processes(
    function: Callable[[ShardCopy], Copied], copies: Iterable[ShardCopy], *, workers: int
) -> Iterator[Copied]:
    for _, done in in_order(function, copies, workers):
        yield done


def _copy(
    map_shards: MapShards, copies: Iterable[ShardCopy], kept_per_shard: NDArray[np.int64], progress: Progress
) -> list[Copied]:
    """Copy all shards of which something is kept, and say how many samples are done."""
    sizes = kept_per_shard[kept_per_shard > 0].tolist()
    kept = sum(sizes)
    found: dict[int, Copied] = {}
    so_far = 0
    progress("copy", 0, kept)
    for done in map_shards(copy_shard, copies):
        found[done.number] = done
        so_far += sizes[done.number]
        progress("copy", so_far, kept)
    lost = len(sizes) - len(found)
    if lost:
        raise ValueError(f"map_shards gave the results of {len(found)} shards, {lost} fewer than it was given.")
    return [found[number] for number in range(len(sizes))]


def _finish(
    source: _Source,
    to: str,
    folder: str,
    place: str,
    done: Sequence[Copied],
    plan: Mapping[str, Any],
    weighed: bool,
) -> list[str]:
    """Write what tells of the shards, once they are all there; returns what is to be known of them."""
    selected, notes = source.selected, list[str]()
    if to == "mds":
        indices: dict[int, dict[str, Any]] = {stream: {"version": 2, "shards": []} for stream in source.streams}
        for (stream, _, _), copied in zip(source.shards(), done, strict=True):
            indices[stream]["shards"].append(copied.entry)
        layout = DatasetLayout(streams=tuple(map(layout_of_index, indices.values())))
        if weighed:
            write_skip_list(_weights(selected, layout), join(folder, _WEIGHTS))
            notes.append(
                "its samples weigh unlike each other in the loss: train on it with "
                f"FixedSubset({join(place, _WEIGHTS)!r}), or they all count alike"
            )
        for stream, index in indices.items():
            at = source.folder_of(folder, stream)
            if source.origins.paths[stream] is not None:
                _write_origins(source, stream, partial(layout_of_index, index), at)
            write_bytes(join(at, INDEX), json.dumps(index, sort_keys=True).encode())
    if selected.weights is not None and not weighed:
        notes.append("the weights of its samples in the loss are left out, as was asked for")
    empty = selected.layout.num_shards - len(done)
    if empty and to == "mds":
        notes.append(
            f"{empty:,} of {selected.layout.num_shards:,} shards have no kept samples and are left out: shuffled, the "
            "order is another than through the skip-list"
        )
    streams = [source.folders[stream] for stream in source.streams]
    metadata = {**plan, "sources": streams, "shards": len(done), "bytes": sum(copied.bytes for copied in done)}
    write_bytes(join(folder, METADATA), (json.dumps(metadata, indent=1) + "\n").encode())
    return notes


def _weights(selected: Selected, layout: DatasetLayout) -> SkipList:
    """A skip-list of the copy that prunes nothing, with the weights of its samples."""
    return SkipList(
        layout=layout,
        pruned=(FrozenBitMap(),) * layout.num_shards,
        epoch=selected.epoch or 0,
        keep_ratio=1.0,
        method=selected.method,
        run=selected.run,
        weights=selected.weights,
    )


def _write_origins(source: _Source, stream: int, layout: Callable[[], Any], folder: str) -> None:
    """Those of the kept samples of a stream, beside its index."""
    of, path = source.selected.layout.streams[stream], source.origins.paths[stream]
    kind, where = source.origins.kinds[stream], source.origins.sources[stream]
    alone = Origins(layout=DatasetLayout(streams=(of,)), paths=(path,), kinds=(kind,), sources=(where,))
    first = sum(before.num_samples for before in source.selected.layout.streams[:stream])
    keep = source.selected.keep[first : first + of.num_samples]
    write_origins_of(layout, folder, _kept_origins(alone, keep), key=kind or "", source=where)


def _kept_origins(origins: Origins, keep: NDArray[np.bool_]) -> Iterator[Origin]:
    begin = 0
    for batch in origins.batches():
        taken = batch.take(np.flatnonzero(keep[begin : begin + len(batch)]))
        yield from zip(*(column.to_pylist() for column in taken.columns), strict=True)
        begin += len(batch)
