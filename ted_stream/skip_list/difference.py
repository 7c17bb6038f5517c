"""Why a skip-list and a dataset do not belong together, in words."""

from ted_stream.skip_list.layout import DatasetLayout, StreamLayout


def first_difference(listed: DatasetLayout, dataset: DatasetLayout) -> str:
    """Name the first thing in which the skip-list's layout and the dataset's differ, with both values.

    Streams that both have are set aside; the others are compared pairwise in their order.

    Args:
        listed: The layout that the skip-list was made for.
        dataset: The layout at hand; its fingerprint differs from that of ``listed``.
    """
    if len(listed.streams) != len(dataset.streams):
        return f"the skip-list has {len(listed.streams)} streams, the dataset {len(dataset.streams)}"
    only_listed = _without(listed, dataset)
    only_dataset = _without(dataset, listed)
    (key, ours), (_, theirs) = only_listed[0], only_dataset[0]
    return f"in stream {key}, {_stream_difference(ours, theirs)}"


def _without(layout: DatasetLayout, other: DatasetLayout) -> list[tuple[str, StreamLayout]]:
    shared = set(other.stream_keys)
    return [(k, s) for k, s in zip(layout.stream_keys, layout.streams, strict=True) if k not in shared]


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
    place, name, other_name = next(
        (i, a.name, b.name)
        for i, (a, b) in enumerate(zip(listed.shards, dataset.shards, strict=True))
        if a.name != b.name
    )
    return f"shard number {place} is {name!r} in the skip-list, {other_name!r} in the dataset"
