"""Writing image corpora: decoded pixels in shards, in a seeded order, with their description."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ted_stream.export import write_origins
from ted_stream.export.origins import KeyKind
from ted_stream.skip_list import StreamLayout

from .prepared import DESCRIPTION_FILE, HASHES, Description

__all__ = ["read_images", "write_images"]

Progress = Callable[[int], None]  # called with the number of samples just written
Place = tuple[str | None, str | None]  # file and key of a sample in its source


def read_images(split: str | Path) -> tuple[NDArray[np.uint8], NDArray[np.int64], StreamLayout]:
    """All of a split that :func:`write_images` wrote, in memory.

    Args:
        split: its local folder.

    Returns:
        Images (N, H, W) or (N, H, W, C) and labels (N,) in the order of the shards, and the layout of these.
    """
    from streaming import LocalDataset

    from ted_stream.reading.content import local_contents
    from ted_stream.reading.dataset import stream_layout

    shards: Any = LocalDataset(str(split))
    samples = [shards[at] for at in range(len(shards))]
    images = np.stack([sample["image"] for sample in samples])
    layout = stream_layout(shards.shards, local_contents(shards.shards))
    return images, np.array([int(sample["label"]) for sample in samples]), layout


def write_images(
    folder: Path,
    splits: Mapping[str, tuple[np.ndarray, np.ndarray]],
    *,
    name: str,
    classes: Sequence[str],
    size_limit: int,
    seed: int,
    notes: Mapping[str, Any],
    places: Mapping[str, Sequence[Place]] | None = None,
    keys: KeyKind = "",
    progress: Progress = lambda _: None,
) -> Description:
    """Write splits of decoded images as MDS and their description beside them.

    Each split is written in a random order drawn from ``seed``: every shard then holds about the corpus' class
    balance, and the stored order depends neither on file names nor on the number of workers.

    Args:
        folder: an empty folder.
        splits: by split name, images (N, H, W) or (N, H, W, C) uint8 and labels (N,) integer.
        name: the corpus' name.
        classes: class names by index.
        size_limit: bytes per shard.
        seed: of the stored order.
        notes: kept in the description.
        places: by split name, where each image came from, which is written beside the shards (see `write_origins`).
        keys: what the keys in them are.
        progress: told how many samples were written.

    Returns:
        The description written to the folder.
    """
    from streaming import MDSWriter

    train = splits["train"][0]
    shape = train.shape[1:]
    axes = tuple(range(train.ndim)) if len(shape) == 2 else (0, 1, 2)
    levels = train.reshape(-1, 1 if len(shape) == 2 else shape[-1])
    mean = [float(value) for value in np.atleast_1d(train.mean(axis=axes, dtype=np.float64))]
    # The variance by counting the 256 grey levels: exact, and without a float copy of the corpus.
    std = []
    for channel, centre in enumerate(mean):
        counts = np.bincount(levels[:, channel], minlength=256)
        std.append(float(np.sqrt((counts * (np.arange(256) - centre) ** 2).sum() / counts.sum())))
    columns = {"image": f"ndarray:uint8:{','.join(map(str, shape))}", "label": "int"}
    for split, (images, labels) in splits.items():
        order = np.random.default_rng(seed).permutation(len(images))
        with MDSWriter(out=str(folder / split), columns=columns, size_limit=size_limit, hashes=HASHES) as writer:
            for index in order:
                writer.write({"image": images[index], "label": int(labels[index])})
                progress(1)
        if places is not None:
            origins = ((*places[split][index], int(labels[index])) for index in order)
            write_origins(folder / split, origins, key=keys, source=str(notes.get("source", "")))
    description = Description(
        kind="images",
        name=name,
        samples={split: len(images) for split, (images, _) in splits.items()},
        shape=tuple(shape),
        classes=tuple(classes),
        mean=tuple(mean),
        std=tuple(std),
        notes={"seed": seed, **notes},
    )
    (folder / DESCRIPTION_FILE).write_text(description.to_json())
    return description
