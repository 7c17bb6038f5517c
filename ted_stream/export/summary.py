"""What a file of scores tells at a glance: where it comes from, how scores are spread, and the extremes."""

import os
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ted_stream.export.scores import Scores, read_scores
from ted_stream.files import read_bytes

__all__ = ["spread", "summary_of_scores"]

_QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
_PLACE = ["stream", "shard", "position", "key"]


def summary_of_scores(path: str | os.PathLike[str], *, number: int) -> dict[str, Any]:
    """Numbers and words, as JSON holds them.

    Args:
        path: of a file of scores, local or a URI.
        number: of samples with the highest and with the lowest scores to name, at least 0.

    Returns:
        ``kind``, ``samples``, ``unknown`` (samples without a score), ``fingerprint`` of the dataset, ``digest``,
        ``provenance``; ``mean`` and ``quantiles`` by probability, of the known scores; ``classes``: ``label``,
        ``samples`` and ``mean`` of each; ``highest`` and ``lowest``, the most extreme first: ``sample_id``, ``stream``,
        ``shard``, ``position``, ``key``, ``label`` and ``score`` of each.

    Raises:
        ValueError: if ``number`` is negative.
        ScoresError: if the file is none of scores, or damaged.
        OSError: if it cannot be read.
    """
    if number < 0:
        raise ValueError(f"number is {number}, but it must be at least 0: it is how many extreme samples are named.")
    scores = read_scores(path)
    known = np.flatnonzero(~np.isnan(scores.scores))
    ascending = known[np.argsort(scores.scores[known], kind="stable")]
    number = min(number, len(known))
    places = pq.ParquetFile(pa.BufferReader(read_bytes(path))).read(columns=_PLACE, use_threads=False)
    return {
        "kind": "scores",
        "samples": len(scores),
        "unknown": len(scores) - len(known),
        "fingerprint": scores.fingerprint,
        "digest": scores.digest,
        "provenance": dict(scores.provenance),
        **spread(scores.scores[known]),
        "classes": _classes(scores, known),
        "highest": _samples(scores, places, ascending[::-1][:number]),
        "lowest": _samples(scores, places, ascending[:number]),
    }


def spread(values: NDArray[np.float32]) -> dict[str, Any]:
    """``mean`` and ``quantiles`` by probability of finite values; ``None`` and empty where there are none."""
    if not len(values):
        return {"mean": None, "quantiles": {}}
    exact = values.astype(np.float64)
    quantiles = zip(_QUANTILES, np.quantile(exact, _QUANTILES).tolist(), strict=True)
    return {"mean": float(exact.mean()), "quantiles": {str(p): value for p, value in quantiles}}


def _classes(scores: Scores, known: NDArray[np.int64]) -> list[dict[str, Any]]:
    if scores.labels is None:
        return []
    found = []
    for label in np.unique(scores.labels):
        values = scores.scores[known[scores.labels[known] == label]]
        mean = float(values.mean(dtype=np.float64)) if len(values) else None
        found.append({"label": int(label), "samples": int((scores.labels == label).sum()), "mean": mean})
    return found


def _samples(scores: Scores, places: pa.Table, ids: NDArray[np.int64]) -> list[dict[str, Any]]:
    rows = places.take(pa.array(ids)).to_pylist()
    labels = [None] * len(ids) if scores.labels is None else scores.labels[ids].tolist()
    values = scores.scores[ids].tolist()
    return [
        {"sample_id": sample_id, **row, "label": label, "score": value}
        for sample_id, row, label, value in zip(ids.tolist(), rows, labels, values, strict=True)
    ]
