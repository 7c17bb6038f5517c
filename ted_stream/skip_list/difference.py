"""Whether a skip-list and a dataset belong together, and in words why not."""

from collections.abc import Sequence
from warnings import warn

from ted_stream.skip_list.layout import DatasetLayout, StreamLayout


def match_streams(listed: DatasetLayout, dataset: DatasetLayout) -> list[int] | None:
    """Which stream of the skip-list's layout each stream of the dataset is, or ``None`` if they do not all match.

    Streams of the same fingerprint belong together; then those that only an unknown content keeps apart. Of several
    that match, the first stays the first.
    """
    found = matching_streams(listed, dataset)
    places = [at for at in found if at is not None]
    return places if len(places) == len(found) == len(listed.streams) else None


def warn_if_unchecked(what: str, listed: DatasetLayout, dataset: DatasetLayout, order: Sequence[int]) -> None:
    """Warn where layouts that match may yet be of other content.

    Args:
        what: has the layout ``listed``; begins the message.
        listed: The layout that it was made for.
        dataset: The layout at hand.
        order: Of `match_streams`.
    """
    if listed.fingerprint == dataset.fingerprint:
        return
    ours = [shard for at in order for shard in listed.streams[at].shards]
    unchecked = sum(not a.is_comparable(b) for a, b in zip(ours, dataset.shards, strict=True))
    reason = "one of the two has no digest of them, or theirs are of different kinds"
    if not listed.knows_content:
        reason = "it was made without digests of them"
    elif not dataset.knows_content:
        reason = "the dataset has no digests of them"
    warn(
        f"{what[0].upper()}{what[1:]} and the dataset agree in the names, sizes and sample counts of all shards. "
        f"Whether the content of {unchecked} of {dataset.num_shards} is the same could not be checked: {reason}. If "
        "the data was made anew since, other samples are pruned than were chosen.",
        UserWarning,
        stacklevel=3,
    )


def first_difference(listed: DatasetLayout, dataset: DatasetLayout) -> str:
    """Name the first thing in which the skip-list's layout and the dataset's differ, with both values.

    Streams that match are set aside; the others are compared pairwise, those of the same shards first, in their order.

    Args:
        listed: The layout that the skip-list was made for.
        dataset: The layout at hand, which does not match it.
    """
    if len(listed.streams) != len(dataset.streams):
        return f"the skip-list has {len(listed.streams)} streams, the dataset {len(dataset.streams)}"
    found = matching_streams(listed, dataset)
    ours = [stream for at, stream in enumerate(listed.streams) if at not in found]
    theirs = [stream for at, stream in zip(found, dataset.streams, strict=True) if at is None]
    pairs = [(a, b) for a in ours for b in theirs if a.shape == b.shape]
    first, second = pairs[0] if pairs else (ours[0], theirs[0])
    return f"in stream {listed.stream_keys[listed.streams.index(first)]}, {_stream_difference(first, second)}"


def matching_streams(listed: DatasetLayout, dataset: DatasetLayout) -> list[int | None]:
    """The stream of the list for each of the dataset; ``None`` where there is none."""
    found: list[int | None] = [None] * len(dataset.streams)
    for is_same in (lambda a, b: a.fingerprint == b.fingerprint, _may_be):
        for place, stream in enumerate(dataset.streams):
            if found[place] is None:
                free = (at for at, other in enumerate(listed.streams) if at not in found and is_same(other, stream))
                found[place] = next(free, None)
    return found


def _may_be(listed: StreamLayout, dataset: StreamLayout) -> bool:
    same = listed.shape == dataset.shape
    return same and all(a.may_be(b) for a, b in zip(listed.shards, dataset.shards, strict=True))


def _stream_difference(listed: StreamLayout, dataset: StreamLayout) -> str:
    ours = {shard.name: shard for shard in listed.shards}
    theirs = {shard.name: shard for shard in dataset.shards}
    counts = f"({len(ours)} shards in the skip-list, {len(theirs)} in the dataset)"
    for name in ours:
        if name not in theirs:
            return f"shard {name!r} is in the skip-list but missing from the dataset {counts}"
    for name in theirs:
        if name not in ours:
            return f"shard {name!r} is in the dataset but unknown to the skip-list {counts}"
    for name, shard in ours.items():
        other = theirs[name]
        if shard.samples != other.samples:
            return f"shard {name!r} has {shard.samples} samples in the skip-list, {other.samples} in the dataset"
        if shard.size != other.size:
            return f"shard {name!r} has {shard.size} bytes in the skip-list, {other.size} in the dataset"
    for place, (shard, other) in enumerate(zip(listed.shards, dataset.shards, strict=True)):
        if shard.name != other.name:
            return f"shard number {place} is {shard.name!r} in the skip-list, {other.name!r} in the dataset"
    differing = [(a, b) for a, b in zip(listed.shards, dataset.shards, strict=True) if not a.may_be(b)]
    shard, other = differing[0]
    return (
        f"all shards agree in names, sizes and sample counts, but the content of {len(differing)} of "
        f"{len(listed.shards)} differs, of {shard.name!r} first ({shard.content} in the skip-list, {other.content} in "
        "the dataset): the data was made anew or replaced"
    )
