"""Whether a manifest is whole, and of the dataset at hand."""

import hashlib
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ted_stream.digests import SAMPLED, sampled_digest
from ted_stream.export.manifest import Manifest, ManifestError, open_manifest
from ted_stream.export.places import place_columns
from ted_stream.export.stream_index import file_of, layout_of_index, may_be_there, read_index, stream_folder
from ted_stream.files import is_remote, join, reading
from ted_stream.skip_list import DatasetLayout, ShardLayout, StreamLayout

__all__ = ["Check", "verify"]

_BLOCK = 1 << 20
_Raw = Mapping[str, Any]  # an entry of an index


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: of the check.
        ok: whether it is as it should be; ``None`` where it could not be looked at.
        told: what was found.
    """

    name: str
    ok: bool | None
    told: str


def verify(
    manifest: str | os.PathLike[str],
    dataset: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    shards: int = 4,
    seed: int = 0,
) -> Iterator[Check]:
    """Check a manifest against a dataset, one thing after the other; in bounded memory.

    ``manifest``: its rows and its words are those that were written, by its digest. ``fingerprint``: the dataset has
    the shards that it was made for: names, sizes, counts and, where known, content, which is that of the index; of
    local shards without hashes that of their first, middle and last bytes. ``samples``: there are as many, and every
    row is at its place. ``bytes``: the shards with kept samples are there, as far as they are local, and the files of
    some of them, drawn by the seed, have the hashes of the index: of whole files, or of tars that ``ted-stream index``
    found of their first, middle and last bytes.

    Args:
        manifest: local path or URI.
        dataset: its folder, or those of its streams, in any order; local paths or URIs.
        shards: whose bytes are read.
        seed: of their draw.

    Raises:
        FileNotFoundError: if the manifest or an index is missing.
        ValueError: if an index is none, or ``shards`` is negative.
    """
    if shards < 0:
        raise ValueError(f"shards is {shards}; give 0 or more: it is how many are read.")
    given = [dataset] if isinstance(dataset, (str, os.PathLike)) else list(dataset)
    folders = [stream_folder(one) for one in given]
    indexes = [read_index(folder) for folder in folders]
    try:
        with open_manifest(manifest) as found:
            found.check()
            yield Check(name="manifest", ok=True, told=f"{found.rows:,} rows, digest {found.digest[:16]}")
            layout = DatasetLayout(streams=tuple(map(_layout_of, folders, indexes)))
            order = _order(found, layout)
            fingerprint = _fingerprint(found, layout, order)
            yield fingerprint
            if order is None or fingerprint.ok is False:
                return
            ordered = DatasetLayout(streams=tuple(layout.streams[at] for at in order))
            kept, samples = _samples(found, ordered)
            yield samples
    except ManifestError as error:
        yield Check(name="manifest", ok=False, told=str(error))
        return
    if samples.ok:
        entries = [(folders[at], shard) for at in order for shard in indexes[at]["shards"]]
        holding = np.add.reduceat(kept, ordered.shard_offsets, dtype=np.int64)
        yield _bytes([entries[at] for at in np.flatnonzero(holding)], shards, seed)


def _layout_of(folder: str, index: _Raw) -> StreamLayout:
    """The layout of a stream, with the content of local shards that have no hash."""
    layout = layout_of_index(index)
    if is_remote(folder) or all(shard.content for shard in layout.shards):
        return layout

    def known(shard: ShardLayout, entry: _Raw) -> ShardLayout:
        for name, kind in (("raw_data", SAMPLED), ("zip_data", f"{SAMPLED}-zip")):
            file = entry.get(name)
            if shard.content or not file:
                continue
            path = Path(folder, file["basename"])
            if not path.is_file() or path.stat().st_size != file["bytes"]:
                continue
            with path.open("rb") as opened:
                content = f"{kind}:{sampled_digest(partial(_read, opened), file['bytes'])}"
            return ShardLayout(name=shard.name, size=shard.size, samples=shard.samples, content=content)
        return shard

    return StreamLayout(shards=tuple(map(known, layout.shards, index["shards"])))


def _read(file: BinaryIO, begin: int, end: int) -> bytes:
    file.seek(begin)
    return file.read(end - begin)


def _order(manifest: Manifest, layout: DatasetLayout) -> list[int] | None:
    """Which stream of the dataset each of the manifest is; ``None`` if they do not all match."""
    found = []
    for key, shape in manifest.streams:
        for names, name in ((layout.stream_keys, key), (layout.shape_keys, shape)):
            if name in names:
                found.append(names.index(name))
                break
    return found if len(set(found)) == len(found) == len(manifest.streams) == len(layout.streams) else None


def _fingerprint(manifest: Manifest, layout: DatasetLayout, order: list[int] | None) -> Check:
    check = partial(Check, name="fingerprint")
    if manifest.fingerprint == layout.fingerprint:
        how = "shards of the same content" if layout.knows_content else "the same names, sizes and counts of shards"
        return check(ok=True, told=f"{layout.fingerprint[:16]}: {how}")
    told = f"the manifest is of dataset {manifest.fingerprint[:16]}, this one is {layout.fingerprint[:16]}"
    if order is None:
        return check(ok=False, told=f"{told}: other streams or shards; name the dataset that the run read, all of it")
    pairs = zip(manifest.streams, order, strict=True)
    others = [(key, layout.stream_keys[at]) for (key, shape), at in pairs if key != shape]
    if any(key != other and other not in layout.shape_keys for key, other in others):
        return check(ok=False, told=f"{told}: the same names, sizes and counts of shards, but other content")
    return check(
        ok=None,
        told="the same names, sizes and counts of shards, but the content of some could not be compared: the manifest "
        "or the dataset has no digests of it",
    )


def _samples(manifest: Manifest, layout: DatasetLayout) -> tuple[NDArray[np.bool_], Check]:
    """(N,) bool which samples are kept, and whether each row is where the dataset has its sample."""
    check = partial(Check, name="samples")
    kept = np.zeros(layout.num_samples, np.bool_)
    if manifest.samples != layout.num_samples:
        told = f"the manifest is of {manifest.samples:,} samples, the dataset has {layout.num_samples:,}"
        return kept, check(ok=False, told=told)
    names, last = dict(zip(layout.stream_keys, (key for key, _ in manifest.streams), strict=True)), -1
    for batch in manifest.batches(["sample_id", "stream", "shard", "position", "kept"]):
        ids = batch.column("sample_id").to_numpy()
        if len(ids) == 0:
            continue
        if ids[0] <= last or (np.diff(ids) <= 0).any() or ids[-1] >= layout.num_samples:
            return kept, check(ok=False, told=f"sample ids are not ascending below {layout.num_samples:,}")
        places = place_columns(layout, ids)
        expected = [names[key] for key in places["stream"].to_pylist()]
        if (
            expected != batch.column("stream").to_pylist()
            or places["shard"].to_pylist() != batch.column("shard").to_pylist()
            or not places["position"].equals(batch.column("position"))
        ):
            return kept, check(ok=False, told=f"rows from sample {ids[0]} on are at other places in the dataset")
        kept[ids] = batch.column("kept").to_numpy(zero_copy_only=False)
        last = ids[-1]
    count = int(np.count_nonzero(kept))
    if count != manifest.kept:
        return kept, check(ok=False, told=f"{count:,} rows are kept, the manifest says {manifest.kept:,}")
    return kept, check(ok=True, told=f"{count:,} of {manifest.samples:,} are kept, each at its place")


def _bytes(entries: Sequence[tuple[str, _Raw]], shards: int, seed: int) -> Check:
    """Whether the files of some shards are there, and have the hashes of their index."""
    check = partial(Check, name="bytes")
    files = [(folder, file_of(folder, shard)) for folder, shard in entries]
    gone = [join(folder, file["basename"]) for folder, file in files if not may_be_there(folder, file)]
    if gone:
        return check(
            ok=False, told=f"{len(gone)} of {len(files)} shards with kept samples are missing, {gone[0]} first"
        )
    hashed = [(folder, file, name) for folder, file in files if (name := _hash_in(file))]
    if not hashed or not shards:
        return check(
            ok=None, told="not looked at: " + ("0 shards were asked for" if hashed else "no hashes in the index")
        )
    chosen, size = random.Random(seed).sample(hashed, min(shards, len(hashed))), 0
    for folder, file, name in chosen:
        path = join(folder, file["basename"])
        try:
            with reading(path) as opened:
                size += (there := opened.seek(0, os.SEEK_END))
                digest = _digest(opened, there, name)
        except FileNotFoundError as error:
            return check(ok=False, told=str(error))
        if digest != file["hashes"][name]:
            return check(
                ok=False, told=f"{path} has {name} {digest}, the index says {file['hashes'][name]}; copy it again"
            )
    told = f"{len(chosen)} of {len(files)} shards with kept samples have the hashes of the index, {size:,} bytes"
    if any(name == SAMPLED for *_, name in chosen):
        told = (
            f"not known: {len(chosen)} of {len(files)} shards with kept samples agree with the digests in the index, "
            "which are of a few samples of each; their other bytes were not compared"
        )
        return check(ok=None, told=told)
    return check(ok=True, told=told)


def _hash_in(file: _Raw) -> str | None:
    """The first hash of a file that can be made anew."""
    return next((name for name in sorted(file["hashes"]) if name in {*hashlib.algorithms_available, SAMPLED}), None)


def _digest(file: BinaryIO, size: int, name: str) -> str:
    if name == SAMPLED:
        return sampled_digest(partial(_read, file), size)
    found = hashlib.new(name)
    file.seek(0)
    while block := file.read(_BLOCK):
        found.update(block)
    return found.hexdigest()
