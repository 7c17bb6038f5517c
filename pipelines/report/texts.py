"""The samples that a summary names, for people: where each came from, and its text."""

from __future__ import annotations

from typing import Any

import numpy as np
from omegaconf import OmegaConf

from ted_stream.export.dataset_files import open_dataset
from ted_stream.export.inspecting import find
from ted_stream.export.origins import find_origins
from ted_stream.files import exists, join
from ted_stream.skip_list import read_skip_list
from ted_stream.skip_list.kinds import SCORES

from .previews import SampleReader

__all__ = ["add_texts"]

_NAMED = ("highest", "lowest", "contested", "likely_wrong")
_SUBSET = "skip_list.parquet"  # of `ted-stream score`, beside the scores


def add_texts(found: dict[str, Any], path: str, *, data: str | None = None) -> None:
    """Put ``file`` and ``key`` of its origin and its ``text`` to every sample that a summary names.

    Of scores with a subset beside them also ``kept``, whether that holds it. Tokens become text by the dataset's own
    tokenizer, all others as the report shows them.

    Args:
        found: what :func:`~ted_stream.export.summary_of` gives; changed in place.
        path: that it is of.
        data: the dataset of the samples; by default that of the config that the scores were made with.

    Raises:
        FileNotFoundError: there is no such dataset.
        ValueError: nothing is named, the dataset is not known or another one, or a sample cannot be read.
    """
    rows = [row for name in _NAMED for row in found.get(name, ()) if isinstance(row, dict)]
    if not rows:
        raise ValueError(f"{path} names no samples whose text could be shown; give scores, a manifest or a run.")
    data = data or _scored_data(found)
    if data is None:
        raise ValueError(f"which dataset the samples of {path} are of is not known; name it with --data.")
    folder, expected = open_dataset(data), found.get("fingerprint", found.get("dataset"))
    if expected not in (folder.layout.fingerprint, folder.layout.shape):
        raise ValueError(
            f"{data} is dataset {folder.layout.fingerprint}, but {path} is of {expected}; name that one with --data."
        )
    reader, ids = SampleReader(folder), np.array([row["sample_id"] for row in rows])
    origins, _ = find_origins(folder.path, folder.layout)
    keep = _kept(path)
    texts = {sample: reader.text(sample) for sample in np.unique(ids).tolist()}
    for row, origin in zip(rows, origins.of(ids), strict=True):
        row |= {name: row.get(name) or origin[name] for name in ("file", "key")}
        row |= {} if keep is None else {"kept": bool(keep[row["sample_id"]])}
        row["text"] = texts[row["sample_id"]]


def _scored_data(found: dict[str, Any]) -> str | None:
    """The dataset that the config of a scoring run names."""
    return OmegaConf.select(OmegaConf.create(found.get("provenance", {}).get("config", "")), "data.path", default=None)


def _kept(path: str) -> np.ndarray | None:
    """(N,) bool, what the subset beside scores keeps; ``None`` where there is none."""
    kind, place = find(path)
    subset = join(place.rpartition("/")[0] or ".", _SUBSET)
    return read_skip_list(subset).keep_mask() if kind == SCORES and exists(subset) else None
