"""One shard copied, in any process of any machine: the same call again finds what is there, or makes it anew."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ted_stream.export.shard_samples import read_samples
from ted_stream.export.shard_targets import TARGETS
from ted_stream.files import exists, read_bytes, write_bytes

__all__ = ["Copied", "ShardCopy", "copy_shard"]


@dataclass(frozen=True, kw_only=True)
class ShardCopy:
    """A shard whose kept samples become a file. Picklable, of a size of a bit per sample.

    Attributes:
        number: among all that are copied, from 0.
        to: the format, one of `TARGETS`.
        folder: of the source's index, a local path or a URI.
        entry: of the shard in that index.
        content: what identifies its bytes (`ShardLayout.content`); empty where it is not known.
        keep: the kept samples: bits as of `numpy.packbits`, 1 where kept.
        first_id: global id of the shard's first sample.
        target: path or URI of the file that is made.
        record: of what is written down of it.
        plan: digest of what all shards are copied for.
    """

    number: int
    to: str
    folder: str
    entry: Mapping[str, Any] = field(repr=False)
    content: str
    keep: bytes = field(repr=False)
    first_id: int
    target: str
    record: str
    plan: str


@dataclass(frozen=True, kw_only=True)
class Copied:
    """What became of a `ShardCopy`.

    Attributes:
        number: of the copy.
        bytes: of the file.
        sha256: of the file.
        entry: in the index of the copied dataset; ``None`` in formats that have none.
    """

    number: int
    bytes: int
    sha256: str
    entry: Mapping[str, Any] | None = field(repr=False)


def copy_shard(copy: ShardCopy) -> Copied:
    """Write the file of a shard's kept samples, unless it is there already, whole.

    What the file is to be is written down first, so that one that is damaged, or was there before, is told from it.

    Raises:
        FileNotFoundError: if the shard is missing.
        FileExistsError: if the file is there and is none of ours, or another export writes to the same place.
        ValueError: if the shard is damaged, or another than the run read, or does not fit the format.
        OSError: if the file cannot be written.
    """
    is_recorded, known = _recorded(copy)
    if known is not None and _sha256_of(copy.target) == known.sha256:
        return known
    if not is_recorded and exists(copy.target):
        raise FileExistsError(f"{copy.target} is there, and was not written by this export; name another place.")
    samples = read_samples(copy.folder, copy.entry, copy.content)
    keep = np.unpackbits(np.frombuffer(copy.keep, np.uint8), count=copy.entry["samples"])
    data, entry = TARGETS[copy.to].make(copy.entry, samples, np.flatnonzero(keep), copy.first_id)
    del samples
    done = Copied(number=copy.number, bytes=len(data), sha256=hashlib.sha256(data).hexdigest(), entry=entry)
    record = {"plan": copy.plan, "bytes": done.bytes, "sha256": done.sha256, "entry": entry}
    write_bytes(copy.record, json.dumps(record).encode())
    write_bytes(copy.target, data)
    return done


def _recorded(copy: ShardCopy) -> tuple[bool, Copied | None]:
    """Whether an earlier call wrote something down, and what, if it can be read."""
    try:
        data = read_bytes(copy.record)
    except FileNotFoundError:
        return False, None
    try:
        record = json.loads(data)
        plan, done = record.pop("plan"), Copied(number=copy.number, **record)
    except (ValueError, KeyError, TypeError, AttributeError):  # damaged
        return True, None
    if plan != copy.plan:
        raise FileExistsError(
            f"{copy.record} was written by another export to the same place at the same time; the shards of both are "
            "mixed there: export to another place."
        )
    return True, done


def _sha256_of(path: str) -> str | None:
    try:
        return hashlib.sha256(read_bytes(path)).hexdigest()
    except FileNotFoundError:
        return None
