"""The ``index.json`` of a streaming dataset, read without streaming: what its shards are."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ted_stream.files import exists, is_remote, join, read_bytes
from ted_stream.skip_list import ShardLayout, StreamLayout

__all__ = ["INDEX", "file_of", "layout_of_index", "may_be_there", "read_index", "stream_folder"]

INDEX = "index.json"
_SPLIT = "train"  # of what `ted-stream prepare` makes
_RAW = ("raw_data", "raw_meta")  # the files that a shard may have; the first holds the samples


def stream_folder(dataset: str | os.PathLike[str]) -> str:
    """The folder with the index: the one that is given, or its ``train``.

    Args:
        dataset: a local path or a URI.

    Raises:
        FileNotFoundError: if neither has one.
    """
    for folder in (os.fspath(dataset), join(dataset, _SPLIT)):
        if exists(join(folder, INDEX)):
            return folder
    raise FileNotFoundError(
        f"{os.fspath(dataset)} holds neither {INDEX} nor {_SPLIT}/{INDEX}, so it is no folder of a streaming dataset; "
        "give the one that training reads, such as data/imagenet."
    )


def read_index(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """What the index of a folder holds.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is none of streaming's.
    """
    path = join(folder, INDEX)
    try:
        index = json.loads(read_bytes(path))
        layout_of_index(index)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is no index of a streaming dataset ({error!r}); write or copy it again.") from error
    return index


def layout_of_index(index: Mapping[str, Any]) -> StreamLayout:
    """The layout of the shards that an index names, with the content that its hashes tell.

    Raises:
        SkipListError: if it names none, or one twice.
    """
    shards = []
    for shard in index["shards"]:
        hashes: dict[str, str] = shard["raw_data"]["hashes"]
        shards.append(
            ShardLayout(
                name=shard["raw_data"]["basename"],
                size=sum(shard[name]["bytes"] for name in _RAW if shard.get(name)),
                samples=shard["samples"],
                content=f"{min(hashes)}:{hashes[min(hashes)]}" if hashes else "",
            )
        )
    return StreamLayout(shards=tuple(shards))


def file_of(folder: str, shard: Mapping[str, Any]) -> Mapping[str, Any]:
    """The file of a shard: a local one that is there; else, and in a remote, the one that is compressed if one is.

    Args:
        folder: of the index, a local path or a URI.
        shard: its entry in the index.

    Returns:
        What the index says of the file: ``basename``, ``bytes``, ``hashes``.
    """
    files = [file for file in (shard["raw_data"], shard.get("zip_data")) if file]
    there = [] if is_remote(folder) else [file for file in files if may_be_there(folder, file)]
    return there[0] if there else files[-1]


def may_be_there(folder: str, file: Mapping[str, Any]) -> bool:
    """Whether a file of an index is in its folder; of a remote one that is not looked at."""
    return is_remote(folder) or Path(folder, file["basename"]).is_file()
