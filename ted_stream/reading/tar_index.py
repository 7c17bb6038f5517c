"""Find the samples in WebDataset tars, and write the index by which they are read in place."""

import contextlib
import json
import multiprocessing
import os
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ted_stream.digests import SAMPLED, sampled_digest
from ted_stream.export.origins import Origin, write_origins_of
from ted_stream.export.stream_index import INDEX, layout_of_index
from ted_stream.extras import optional_imports
from ted_stream.files import is_remote, join, read_bytes, write_bytes
from ted_stream.reading.tar_members import META, members, sample_member
from ted_stream.reading.tar_shards import offsets_file
from ted_stream.stores.downloads import CloudDownloader

with optional_imports():
    from braceexpand import braceexpand

__all__ = ["Indexed", "index_tars"]

BLOCK = 512  # of a tar
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


@dataclass(frozen=True, kw_only=True)
class Indexed:
    """What was indexed, and the folder of the index."""

    folder: str
    shards: int
    samples: int
    bytes: int


def index_tars(
    pattern: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    workers: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Indexed:
    """Write ``index.json``, and a file of sample offsets per shard, so that streaming reads tars in place.

    Beside it lies ``origins.parquet``, the tar and the key of each sample, by which manifests name what they list.

    The samples are those that webdataset finds, in its order. The index is written last: where there is one, there
    is also all that it names. Indexing again replaces everything.

    Args:
        pattern: a tar, or a brace pattern of tars in one folder: a local path, or a URI that streaming downloads from.
        out: folder or URI for what is written, where it cannot lie beside the shards. As a local folder it is then
            the dataset's ``local``, and the shards' folder its ``remote``.
        workers: processes that read shards. Each holds one shard on its disk at a time if they are remote.
        progress: told how many shards are done, of how many.

    Raises:
        OSError: if a shard does not exist or cannot be read.
        ValueError: if a path is empty, the pattern is of several folders, a shard is malformed or empty, a member is
            unsafe, samples differ in their extensions, or another dataset's index is in the way.
    """
    urls, folder = _expand(os.fspath(pattern))
    out = folder if out is None else os.fspath(out)
    _check_index_in_the_way(out, urls)
    progress(0, len(urls))
    # The first sample says what all others must have.
    first, keys = _index_shard(urls[0], out=out, expected=None)
    shards = list[dict[str, Any]]()
    index_shard = partial(_index_shard, out=out, expected=first["extensions"])
    with contextlib.ExitStack() as stack:
        map_shards = map
        if min(workers, len(urls) - 1) > 1:
            # Not forked from here, where there may be threads (a progress bar), but from a process that has imported
            # what all of them need: importing takes longer than most shards.
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload([__name__])
            map_shards = stack.enter_context(ProcessPoolExecutor(min(workers, len(urls) - 1), context)).map

        def origins() -> Iterator[Origin]:
            for shard, keys_of_shard in chain([(first, keys)], map_shards(index_shard, urls[1:])):
                shards.append(shard)
                progress(len(shards), len(urls))
                yield from ((shard["raw_data"]["basename"], key, None) for key in keys_of_shard)

        indexed = partial(layout_of_index, {"shards": shards})
        write_origins_of(indexed, out, origins(), key="webdataset", source=folder)
    write_bytes(join(out, INDEX), json.dumps({"version": 2, "shards": shards}).encode())
    return Indexed(
        folder=out,
        shards=len(shards),
        samples=sum(shard["samples"] for shard in shards),
        bytes=sum(shard["raw_data"]["bytes"] for shard in shards),
    )


def _expand(pattern: str) -> tuple[list[str], str]:
    """The shards of a pattern, and their folder."""
    urls = list(braceexpand(pattern))
    folders = sorted({os.path.dirname(url) for url in urls})
    if len(folders) > 1:
        raise ValueError(
            f"{pattern} names shards in {len(folders)} folders, {folders[0]} and {folders[1]} among them; an index "
            "covers one. Index each by itself, and read them as streams of one dataset."
        )
    url, count = Counter(urls).most_common(1)[0]
    if count > 1:
        raise ValueError(f"{pattern} names {url} {count} times; name every shard once.")
    if not is_remote(pattern):
        missing = [url for url in urls if not os.path.isfile(url)]
        if missing:
            raise FileNotFoundError(
                f"{len(missing)} of the {len(urls)} shards of {pattern} do not exist, the first {missing[0]}; check "
                "the path and the numbers."
            )
    return urls, folders[0] or "."


def _check_index_in_the_way(out: str, urls: list[str]) -> None:
    """Raise ValueError if the folder has an index already that names other shards too."""
    path = join(out, INDEX)
    try:
        indexed = {shard["raw_data"]["basename"] for shard in json.loads(read_bytes(path))["shards"]}
    except Exception:  # there is none, which every store says in its own words, or none that anything could read
        return
    others = sorted(indexed - {os.path.basename(url) for url in urls})
    if others:
        raise ValueError(
            f"{path} is the index of {len(indexed)} shards, {len(others)} of which you did not name, {others[0]} "
            "first; it would be lost. Name those shards too, pass --out with another folder, or remove that file."
        )


def _index_shard(url: str, *, out: str, expected: list[str] | None) -> tuple[dict[str, Any], list[str]]:
    """Write the offsets of a shard and return its entry in the index, and the keys of its samples.

    Args:
        url: the tar.
        out: folder or URI of the index.
        expected: the extensions that every sample must have; ``None``: those of its first one.
    """
    name = os.path.basename(url)
    with _opened(url) as file:
        offsets, keys, extensions = _scan(file, url, expected)
        size = file.seek(0, os.SEEK_END)
        digest = sampled_digest(partial(_read, file), size)  # all of it would have to be read for another
    meta = offsets_file(offsets)
    write_bytes(join(out, f"{name}.offsets"), meta)
    entry = {
        "version": 2,
        "format": "tar",
        "samples": len(offsets) - 1,
        "raw_data": {"basename": name, "bytes": size, "hashes": {SAMPLED: digest}},
        "raw_meta": {"basename": f"{name}.offsets", "bytes": len(meta), "hashes": {}},
        "zip_data": None,
        "zip_meta": None,
        "compression": None,
        "hashes": [],
        "size_limit": None,
        "extensions": extensions,
    }
    return entry, keys


def _read(file: BinaryIO, begin: int, end: int) -> bytes:
    file.seek(begin)
    return file.read(end - begin)


@contextlib.contextmanager
def _opened(url: str) -> Iterator[BinaryIO]:
    """A shard as a local file, downloaded for as long as it is needed if it is remote."""
    with contextlib.ExitStack() as stack:
        path = url
        if is_remote(url):
            path = os.path.join(stack.enter_context(tempfile.TemporaryDirectory()), "shard")
            try:
                CloudDownloader.direct_download(url, path)
            except Exception as error:  # every store has its own
                raise OSError(f"The shard {url} cannot be downloaded: {error}") from error
        yield stack.enter_context(open(path, "rb"))


def _scan(file: BinaryIO, url: str, expected: list[str] | None) -> tuple[NDArray[np.uint64], list[str], list[str]]:
    """Find the samples of a tar.

    Returns:
        The offsets (see `parse_offsets`) as uint64, shape (samples + 1,), the key of each sample, and the extensions
        of all. What is no part of a sample lies behind the sample before it, or before the first.
    """
    begins: dict[str, int] = {}  # of each key
    key, extensions, end = "", list[str](), 0

    def check_sample() -> None:
        nonlocal expected
        expected = sorted(extensions) if expected is None else expected
        if sorted(extensions) != expected:
            lacks = sorted(set(expected).difference(extensions))
            beyond = sorted(set(extensions).difference(expected))
            raise ValueError(
                f"{url}: the sample {key!r} {'lacks' if lacks else 'adds'} {_dotted(lacks or beyond)}: it has "
                f"{_dotted(sorted(extensions))}, and the first sample of the dataset {_dotted(expected)}. All samples "
                "must have the same extensions; complete this one or leave it out."
            )

    for member in _whole_tar(file, url):
        place = sample_member(member)
        if place is None:
            continue
        if place[0] != key:
            if begins:
                check_sample()
            key, extensions = place[0], []
            if key in begins:
                raise ValueError(
                    f"{url}: the key {key!r} of {member.name!r} occurred before, with other keys since: webdataset "
                    "would make two samples of it. Put the files of a sample side by side, or rename one."
                )
            begins[key] = member.offset
        if place[1] in extensions:
            raise ValueError(
                f"{url}: the sample {key!r} has a second .{place[1]} with {member.name!r} (case is ignored); rename or "
                "remove one."
            )
        if META.match(place[1]):
            raise ValueError(
                f"{url}: the extension of {member.name!r} is of a form that webdataset keeps for itself; rename it."
            )
        extensions.append(place[1])
        end = _end(member)
    if not begins:
        raise ValueError(
            f"{url} holds no samples: no plain file with an extension. Leave it out of the pattern, or write it again."
        )
    check_sample()
    return np.array([*begins.values(), end], np.uint64), list(begins), sorted(extensions)


def _whole_tar(file: BinaryIO, url: str) -> Iterator[tarfile.TarInfo]:
    """The plain files and directories of a whole, uncompressed tar.

    Raises:
        ValueError: if it is not that, or a member is anything else or has an unsafe name.
    """
    head = file.read(max(map(len, COMPRESSED)))
    for magic, name in COMPRESSED.items():
        if head.startswith(magic):
            raise ValueError(
                f"{url} is compressed ({name}): samples cannot be read from within it. Unpack it to a plain tar; "
                "images hardly shrink when compressed again."
            )
    file.seek(0)
    end = 0
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in members(tar):
                _check_member(member, tar, url)
                end = _end(member)
                yield member
    except tarfile.TarError as error:
        raise ValueError(f"{url} is no whole tar: {error}, after byte {end}. Write or copy it again.") from error
    # tarfile, and so webdataset, take a damaged header for the end.
    file.seek(end)
    size = 0
    while chunk := file.read(1 << 20):
        if chunk.strip(b"\0"):
            raise ValueError(
                f"{url} goes on after byte {end}, where its members end: a header is damaged or cut off there, or "
                "another tar was appended. Write or copy it again."
            )
        size += len(chunk)
    if size < BLOCK:
        raise ValueError(
            f"{url} ends at byte {end + size} without the zeros that end a tar: it is truncated. Copy it again, or, if "
            "it is whole, append 1,024 zero bytes."
        )


def _dotted(extensions: list[str]) -> str:
    return ", ".join(f".{extension}" for extension in extensions)


def _end(member: tarfile.TarInfo) -> int:
    """The byte after a member, with its padding."""
    return member.offset_data + (-(-member.size // BLOCK) * BLOCK if member.isreg() else 0)


def _check_member(member: tarfile.TarInfo, tar: tarfile.TarFile, url: str) -> None:
    if tar.pax_headers:
        raise ValueError(
            f"{url} has a global header before {member.name!r} ({', '.join(tar.pax_headers)}): no member can be read "
            "without it. Write the tar without global headers."
        )
    if member.name.startswith("/") or ".." in member.name.split("/"):
        raise ValueError(
            f"{url}: the name {member.name!r} is absolute or climbs with '..'; write the tar with relative names."
        )
    if not (member.isreg() or member.isdir()) or member.issparse() or member.size < 0:
        raise ValueError(
            f"{url}: {member.name!r} is a link, a device, a sparse file or damaged; samples are of plain files. "
            "Write the tar with the files themselves (tar --dereference --hard-dereference)."
        )
