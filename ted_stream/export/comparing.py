"""Two skip-lists, manifests, runs or files of scores beside each other: what both keep, and how their scores agree."""

import io
import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ted_stream.export.findings import RunFindings, read_findings
from ted_stream.export.inspecting import find
from ted_stream.export.manifest import open_manifest
from ted_stream.export.rows import PLAIN
from ted_stream.export.run_files import list_name
from ted_stream.export.scores import read_scores
from ted_stream.export.summary import spread
from ted_stream.files import exists, join, read_bytes
from ted_stream.skip_list import DatasetLayout, SkipList, read_skip_list
from ted_stream.skip_list.kinds import MANIFEST, RUNNING_SCORES, SCORES, SKIP_LIST

__all__ = ["comparison_of"]

_TOP = 0.1  # of the samples, whose highest scores are compared


@dataclass(frozen=True, kw_only=True, eq=False)
class _Side:
    """One of the two: what it keeps, what scores it has, or both.

    Attributes:
        fingerprint: of the dataset; ``None`` where it does not say.
        keep: the list; ``None`` where it has none.
        kept: (n,) ids that a manifest names.
        of: N, as a manifest says.
        scores: (N,) float32, NaN where unknown; a manifest's are of the kept alone.
    """

    path: str
    kind: str
    fingerprint: str | None = None
    keep: SkipList | None = field(default=None, repr=False)
    kept: NDArray[np.int64] | None = field(default=None, repr=False)
    of: int | None = None
    scores: NDArray[np.float32] | None = field(default=None, repr=False)
    run: RunFindings | None = field(default=None, repr=False)

    @property
    def samples(self) -> int | None:
        """N, where it is known."""
        if self.keep is not None:
            return self.keep.num_samples
        return self.of if self.scores is None or self.kept is not None else len(self.scores)

    def mask(self, samples: int) -> NDArray[np.bool_] | None:
        """(N,) of the kept, if it says which."""
        if self.keep is not None:
            return self.keep.keep_mask()
        if self.kept is None:
            return None
        mask = np.zeros(samples, np.bool_)
        mask[self.kept] = True
        return mask


def comparison_of(first: str | os.PathLike[str], second: str | os.PathLike[str]) -> dict[str, Any]:
    """Numbers, as JSON holds them, of two things that are of one dataset of N samples.

    A run stands for the list of its last pruned epoch and its running scores.

    Args:
        first: path or URI of a skip-list, a manifest, a run folder, a file of scores or the running scores of a run.
        second: of another.

    Returns:
        ``kind`` ("comparison"), ``paths``, ``kinds``, ``samples``; and where there is something on both sides:

        - ``kept``: samples that ``both`` keep, ``only_first``, ``only_second`` and ``neither``; ``jaccard``, both /
          kept by any, and ``expected_jaccard``, of lists as long that are drawn independently.
        - ``scores``: ``known`` on both sides; ``rank_correlation`` (Spearman) and ``correlation`` (Pearson); the share
          of the highest tenth that is the same, ``top_overlap``. The correlations are ``None`` where one has equal
          scores alone.
        - ``scores_of_kept``: where one has a list and the other scores, those of the kept and of the pruned samples.
        - ``epochs``: of two runs, ``kept`` and ``jaccard`` of the epochs that both have.

    Raises:
        FileNotFoundError, ValueError: as :func:`~ted_stream.export.inspecting.summary_of`; or one of them is a dataset,
            or they are of two datasets, or nothing of one can be compared with the other.
    """
    one = _side(first, None)
    two = _side(second, None if one.keep is None else one.keep.layout)
    if one.keep is None and two.keep is not None:
        one = _side(first, two.keep.layout)
    samples = _samples_of(one, two)
    masks, scores = [side.mask(samples) for side in (one, two)], [_scores(side, samples) for side in (one, two)]
    found: dict[str, Any] = {
        "kind": "comparison",
        "paths": [one.path, two.path],
        "kinds": [one.kind, two.kind],
        "samples": samples,
    }
    if masks[0] is not None and masks[1] is not None:
        found["kept"] = _kept(masks[0], masks[1])
    if scores[0] is not None and scores[1] is not None:
        found["scores"] = _agreement(scores[0], scores[1])
    sided = [
        {"kept_by": keeper.path, "scores_of": scorer.path, **_scores_by(mask, values)}
        for keeper, mask, scorer, values in ((one, masks[0], two, scores[1]), (two, masks[1], one, scores[0]))
        if mask is not None and values is not None and scorer.kept is None
    ]
    if sided:
        found["scores_of_kept"] = sided
    if len(found) == 4:
        raise ValueError(f"{one.path} ({one.kind}) and {two.path} ({two.kind}) have nothing in common to compare.")
    if one.run is not None and two.run is not None:
        found["epochs"] = _epochs(one.run, two.run)
    return found


def _side(path: str | os.PathLike[str], layout: DatasetLayout | None) -> _Side:
    """Of a path; in the order of the streams of ``layout``, where one is given."""
    kind, place = find(path)
    if kind == SKIP_LIST:
        keep = read_skip_list(place, layout=layout)
        return _Side(path=place, kind=kind, fingerprint=keep.layout.fingerprint, keep=keep)
    if kind == SCORES:
        scores = read_scores(place, layout)
        fingerprint = scores.fingerprint if layout is None else layout.fingerprint
        return _Side(path=place, kind=kind, fingerprint=fingerprint, scores=scores.scores)
    if kind == RUNNING_SCORES:
        table = pq.read_table(io.BytesIO(read_bytes(place)), use_threads=False)
        fingerprint = (table.schema.metadata or {})[b"ted_stream.running_scores.fingerprint"].decode()
        return _Side(path=place, kind=kind, fingerprint=fingerprint, scores=_column(table["score"]))
    if kind == MANIFEST:
        with open_manifest(place) as manifest:
            manifest.check()
            columns = ["sample_id", "score", "kept"]
            table = pa.Table.from_batches(manifest.batches(columns), pa.schema([PLAIN.field(name) for name in columns]))
        table = table.filter(table["kept"])
        kept = table["sample_id"].to_numpy()
        scores = np.full(int(kept.max(initial=-1)) + 1, np.nan, np.float32)
        scores[kept] = _column(table["score"])
        return _Side(
            path=place, kind=kind, fingerprint=manifest.fingerprint, kept=kept, of=manifest.samples, scores=scores
        )
    if kind == "a dataset":
        raise ValueError(f"{place} is a dataset, which keeps nothing and has no scores; give a run or a list of it.")
    run = read_findings(place)
    keep = None if run.decisions is None else run.decisions.last
    if keep is not None and layout is not None and keep.layout.streams != layout.streams:
        keep.aligned_to(layout)  # another dataset is refused by name
        raise ValueError(
            f"{place} has its streams in another order than the other, so that its scores and epochs cannot be laid "
            "beside them; compare skip-lists of the two, which can."
        )
    fingerprint = None if keep is None else keep.layout.fingerprint
    return _Side(path=place, kind=kind, fingerprint=fingerprint, keep=keep, scores=run.scores, run=run)


def _column(column: Any) -> NDArray[np.float32]:
    return column.to_numpy().astype(np.float32)


def _samples_of(one: _Side, two: _Side) -> int:
    """N.

    Raises:
        ValueError: they are of two datasets.
    """
    for name, values in (
        ("datasets", [one.fingerprint, two.fingerprint]),
        ("samples", [one.samples, two.samples]),
    ):
        if None not in values and values[0] != values[1]:
            raise ValueError(
                f"{one.path} and {two.path} are of different {name}, {values[0]} and {values[1]}, so that their "
                "samples are not the same; compare what is of one dataset."
            )
    known = [side.samples for side in (one, two) if side.samples is not None]
    named = [int(side.kept.max(initial=-1)) + 1 for side in (one, two) if side.kept is not None]
    samples = max(known or named or [0])
    if max(named, default=0) > samples:
        raise ValueError(f"a manifest names sample {max(named) - 1} of a dataset of {samples}; it is of another one.")
    return samples


def _scores(side: _Side, samples: int) -> NDArray[np.float32] | None:
    """(N,) of a side; ``None`` where none is known."""
    if side.scores is None or np.isnan(side.scores).all():
        return None
    missing = samples - len(side.scores)
    return np.concatenate([side.scores, np.full(missing, np.nan, np.float32)]) if missing else side.scores


def _kept(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> dict[str, Any]:
    both, size = int((first & second).sum()), len(first)
    counts = int(first.sum()), int(second.sum())
    union = sum(counts) - both
    chance = counts[0] * counts[1] / size if size else 0.0
    return {
        "first": counts[0],
        "second": counts[1],
        "both": both,
        "only_first": counts[0] - both,
        "only_second": counts[1] - both,
        "neither": size - union,
        "jaccard": both / union if union else 1.0,
        "expected_jaccard": chance / (sum(counts) - chance) if union else 1.0,
    }


def _agreement(first: NDArray[np.float32], second: NDArray[np.float32]) -> dict[str, Any]:
    known = ~np.isnan(first) & ~np.isnan(second)
    one, two = first[known].astype(np.float64), second[known].astype(np.float64)
    top = -(-len(one) // int(1 / _TOP))
    highest = [set(np.argsort(-values, kind="stable")[:top].tolist()) for values in (one, two)]
    return {
        "known": len(one),
        "rank_correlation": _pearson(_ranks(one), _ranks(two)),
        "correlation": _pearson(one, two),
        "top_overlap": len(highest[0] & highest[1]) / top if top else None,
    }


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Equal values share the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def _pearson(one: NDArray[np.float64], two: NDArray[np.float64]) -> float | None:
    if len(one) < 2 or np.ptp(one) == 0 or np.ptp(two) == 0:
        return None
    return float(np.corrcoef(one, two)[0, 1])


def _scores_by(keep: NDArray[np.bool_], scores: NDArray[np.float32]) -> dict[str, Any]:
    known = ~np.isnan(scores)
    return {"kept": spread(scores[known & keep]), "pruned": spread(scores[known & ~keep])}


def _epochs(one: RunFindings, two: RunFindings) -> list[dict[str, Any]]:
    """Of the epochs that both runs have; without an overlap where a list is gone."""
    theirs = {epoch.epoch: epoch for epoch in two.epochs}
    digests = [{record["epoch"]: record["digest"] for record in side.run["epochs"]} for side in (one, two)]
    rows = []
    for epoch in one.epochs:
        other = theirs.get(epoch.epoch)
        if other is None:
            continue
        paths = [join(side.folder, list_name(epoch.epoch)) for side in (one, two)]
        row: dict[str, Any] = {"epoch": epoch.epoch, "kept": [epoch.kept, other.kept], "jaccard": None}
        if all(map(exists, paths)):
            lists = [read_skip_list(path, digest=of[epoch.epoch]) for path, of in zip(paths, digests, strict=True)]
            row["jaccard"] = _kept(lists[0].keep_mask(), lists[1].keep_mask())["jaccard"]
        rows.append(row)
    return rows
