"""Drop pruned samples in plain WebDataset pipelines."""

import contextlib
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from itertools import chain
from typing import Any
from urllib.parse import urlparse

from pyroaring import AbstractBitMap

from ted_stream.skip_list import SkipList, unweighted

__all__ = ["drop_pruned"]

Stage = Callable[[Iterable[dict[str, Any]]], Iterator[dict[str, Any]]]


def drop_pruned(skip_list: SkipList | str | os.PathLike[str]) -> Stage:
    """A stage of a WebDataset pipeline that leaves out what a skip-list prunes.

    After the samples are made, anywhere in front of shuffling and batching, it drops samples before they are decoded::

        wds.WebDataset(urls, shardshuffle=100).compose(drop_pruned("…/ep0080.parquet")).shuffle(1000).decode("pil")

    In the place of webdataset's own reading of tars it does not even read them: in local files, and wherever else the
    stream can seek, it seeks over their bytes::

        wds.DataPipeline(wds.SimpleShardList(urls), wds.split_by_worker, drop_pruned("…/ep0080.parquet"),
                         wds.shuffle(1000), wds.decode("pil"))

    The list must be of tars that were indexed in place (``ted-stream index``). It names samples by shard and position
    there, so the stage must see every sample of a shard, in order. Whole shards may come in any order and may be split
    over nodes and workers. Stopping early is no error.

    Three things cannot be seen from here: tars that were made anew with as many samples; samples that were shuffled
    within their own shard only, as by ``shuffle`` in front of this stage where there is a single shard; and a shard
    that a handler in front of it passed over whole.

    Args:
        skip_list: the list, without weights, or the path or URI of its file.

    Raises:
        ValueError: while iterating, if a shard is not of the list or has fewer or more samples than there; before, if
            the list has two shards of one name.
        MissingExtraError: without webdataset.
    """
    import_module("ted_stream.reading.tar_members")
    return _DropPruned(unweighted(skip_list, reader="drop_pruned"))


class _Shard:
    """Counts the samples of a shard as they pass.

    Args:
        name: of the shard.
        samples: how many it should have.
        pruned: positions to leave out.
    """

    def __init__(self, name: str, samples: int, pruned: AbstractBitMap) -> None:
        self._name, self._samples, self._pruned = name, samples, pruned
        self._seen = 0

    @property
    def complete(self) -> bool:
        return self._seen == self._samples

    def keeps_next(self) -> bool:
        if self.complete:
            raise ValueError(
                f"Shard {self._name} has {self._samples + 1} samples or more, where the skip-list has {self._samples}. "
                f"{_FIX}"
            )
        self._seen += 1
        return self._seen - 1 not in self._pruned

    def end(self) -> None:
        if not self.complete:
            raise ValueError(
                f"Shard {self._name} ended after {self._seen} of the {self._samples} samples that the skip-list has. "
                f"{_FIX}"
            )


_FIX = (
    "Positions would be wrong. Put drop_pruned in front of whatever shuffles, selects or splits samples, let no "
    "handler leave out broken ones, and use the shards that the list was made for."
)


class _DropPruned:
    """See :func:`drop_pruned`. Picklable, for workers that are spawned."""

    def __init__(self, skip_list: SkipList) -> None:
        self._shards: dict[str, tuple[int, AbstractBitMap]] = {}
        for shard, pruned in zip(skip_list.layout.shards, skip_list.pruned, strict=True):
            if shard.name in self._shards:
                raise ValueError(
                    f"The skip-list has several shards named {shard.name}, one per stream, which cannot be told apart "
                    "by their names here; read the streams with PrunedStreamingDataset."
                )
            self._shards[shard.name] = shard.samples, pruned

    def __call__(self, source: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        source = iter(source)
        first = next(source, None)
        if first is None:
            return
        everything = chain([first], source)
        if isinstance(first, dict) and "__key__" in first and isinstance(first.get("__url__"), str):
            yield from self._filter(everything)
        elif isinstance(first, dict) and "url" in first:
            from webdataset.tariterators import group_by_keys

            yield from group_by_keys(self._read(everything))
        else:
            raise ValueError(
                f"drop_pruned was given {_describe(first)}; it takes samples with __key__ and __url__, or shards with "
                "url. Put it in front of to_tuple, batched and the like."
            )

    def _shard(self, url: str) -> _Shard:
        # The shard is one of the words of a command ("pipe:aws s3 cp s3://bucket/x.tar -").
        paths = url.split() if url.startswith("pipe:") else [urlparse(url).path]
        names = [path.rpartition("/")[2] for path in paths]
        for name in names:
            if name in self._shards:
                return _Shard(name, *self._shards[name])
        some = ", ".join(list(self._shards)[:3])
        raise ValueError(
            f"The shard {url} is not of this skip-list, which has {len(self._shards)} shards: {some}, …; use the "
            "shards that the list was made for, under their names."
        )

    def _filter(self, samples: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Kept samples, of samples that webdataset made."""
        shard, url, first_key = None, None, None
        for sample in samples:
            # A shard may come twice in a row: a key occurs only once in it.
            again = shard is not None and shard.complete and sample["__key__"] == first_key
            if shard is None or sample["__url__"] != url or again:
                if shard is not None:
                    shard.end()
                url, first_key = sample["__url__"], sample["__key__"]
                shard = self._shard(url)
            if shard.keeps_next():
                yield sample
        if shard is not None:
            shard.end()

    def _read(self, shards: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """The files of kept samples as webdataset groups them, of shards that are dicts of url and maybe stream."""
        from webdataset.gopen import gopen

        from ted_stream.reading.tar_members import members, sample_member

        for source in shards:
            url = source["url"]
            shard = self._shard(url)
            stream: Any = source["stream"] if "stream" in source else gopen(url)
            seekable = hasattr(stream, "seekable") and stream.seekable()  # webdataset's pipes lack the method
            key, kept = None, False
            try:
                with tarfile.open(fileobj=stream, mode="r:*" if seekable else "r|*") as tar:
                    for member in members(tar):
                        place = sample_member(member)
                        if place is None:
                            continue
                        if place[0] != key:
                            key, kept = place[0], shard.keeps_next()
                        if kept:
                            file = tar.extractfile(member)
                            assert file is not None  # for a plain file
                            yield {"fname": member.name, "data": file.read(), "__url__": url}
            except tarfile.TarError as error:
                raise ValueError(f"The shard {url} cannot be read as a tar: {error}.") from error
            finally:
                with contextlib.suppress(OSError):  # a command that feeds a pipe does not like to be left early
                    stream.close()
            shard.end()
            yield {}  # or webdataset would join equal keys across shards


def _describe(item: Any) -> str:
    return f"a dict of {', '.join(map(repr, item))}" if isinstance(item, dict) else f"a {type(item).__name__}"
