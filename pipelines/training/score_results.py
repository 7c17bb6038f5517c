"""What a scoring run leaves: the file of scores, the skip-list of a subset, and what it did."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import OmegaConf

from ted_stream.export.scores import write_scores
from ted_stream.files import join, write_bytes
from ted_stream.methods.static import Scored, StaticMethod, choose_subset
from ted_stream.pruning import num_kept
from ted_stream.skip_list import DatasetLayout, SkipList, write_skip_list

from .score_settings import Scoring
from .settings import ConfigError
from .surrogates import Told, num_surrogates, settings_of_surrogate

__all__ = ["SCORES_FILE", "SCORE_FILE", "SKIP_LIST_FILE", "ScoreResult", "seeds_of", "write_results"]

SCORES_FILE, SKIP_LIST_FILE, SCORE_FILE = "scores.parquet", "skip_list.parquet", "score.json"


@dataclass(frozen=True, kw_only=True)
class ScoreResult:
    """What a scoring run did, as kept in ``score.json``.

    Attributes:
        run_name: of the settings.
        method: its repr.
        samples: that there are.
        scored: of them, that have a score.
        left_out: of them, that the method keeps in no subset.
        note: why, for people; empty where none is.
        kept: of the subset, if one was asked for.
        seeds: of the surrogates; empty where nothing was trained.
        epochs: that each was trained for.
        passes: over the samples by each; 0 where they are measured within training.
        metrics: means of their test metrics, by name.
        training_seconds: of all surrogates, evaluation apart.
        scoring_seconds: beyond training: passes, scores and the choice of the subset.
        cost: scoring_seconds relative to an epoch of training; ``None`` where nothing was trained.
        folder: of the run.
        scores: path of the scores.
        skip_list: path of the subset's skip-list, if one was asked for.
        weighted: whether its samples have weights.
    """

    run_name: str
    method: str
    samples: int
    scored: int
    left_out: int
    note: str
    kept: int | None
    seeds: list[int]
    epochs: int
    passes: int
    metrics: dict[str, float]
    training_seconds: float
    scoring_seconds: float
    cost: float | None
    folder: str
    scores: str
    skip_list: str | None
    weighted: bool


def seeds_of(scoring: Scoring) -> list[int]:
    """The different seeds of the surrogates."""
    return sorted({settings_of_surrogate(scoring, number).seed for number in range(num_surrogates(scoring))})


def write_results(scoring: Scoring, layout: DatasetLayout, told: Sequence[Told]) -> ScoreResult:
    """Score, choose, and write what was found; on rank 0.

    Args:
        scoring: the run.
        layout: of the dataset.
        told: by each surrogate.

    Raises:
        ValueError: the method finds no scores, or the samples do not suffice for the subset.
    """
    started = time.perf_counter()
    settings, size, ratio = scoring.settings, layout.num_samples, scoring.choice.prune_ratio
    keep = None if ratio is None else num_kept(1 - ratio, size)
    scored = _scored(scoring, size, told, keep)
    scores = scored.scores
    labels = _labels(size, told)
    is_trained = any(one.metrics for one in told)
    epochs = max(one.epochs for one in told)
    scores_path, list_path = join(settings.folder, SCORES_FILE), None
    write_scores(
        scores_path,
        layout,
        scores,
        labels=labels,
        provenance={
            "method": repr(scoring.method),
            "keeps": "lowest" if scoring.keeps_lowest else "highest",
            "config": OmegaConf.to_yaml(OmegaConf.structured(settings)),
            "seeds": ", ".join(map(str, seeds_of(scoring))),
            "epochs": str(epochs),
            "versions": _versions(),
            **({"left out": scored.note} if scored.note else {}),
        },
    )
    if keep is not None:
        list_path = join(settings.folder, SKIP_LIST_FILE)
        write_skip_list(_chosen(scoring, layout, scored, labels, keep), list_path)
    training, scoring_seconds = sum(one.training_seconds for one in told), sum(one.scoring_seconds for one in told)
    scoring_seconds += time.perf_counter() - started
    trained_epochs = sum(one.epochs for one in told)
    result = ScoreResult(
        run_name=settings.run_name,
        method=repr(scoring.method),
        samples=size,
        scored=int(np.count_nonzero(~np.isnan(scores))),
        left_out=0 if scored.left_out is None else int(scored.left_out.sum()),
        note=scored.note,
        kept=keep,
        seeds=seeds_of(scoring) if is_trained else [],
        epochs=epochs,
        passes=_passes(scoring, epochs),
        metrics={name: float(np.mean([one.metrics[name] for one in told])) for name in told[0].metrics},
        training_seconds=training,
        scoring_seconds=scoring_seconds,
        cost=scoring_seconds / (training / trained_epochs) if is_trained else None,
        folder=settings.folder,
        scores=scores_path,
        skip_list=list_path,
        weighted=scored.weights is not None and list_path is not None,
    )
    write_bytes(join(settings.folder, SCORE_FILE), (json.dumps(asdict(result), indent=2) + "\n").encode())
    return result


def _scored(scoring: Scoring, size: int, told: Sequence[Told], keep: int | None) -> Scored:
    """Means over the surrogates that score a sample, NaN where none does; what else there is, is of the last one."""
    totals, counts = np.zeros(size), np.zeros(size, np.int64)
    scored = None
    for one in told:
        scored = one.scored(scoring.method, keep=keep, seed=scoring.settings.seed)
        totals[one.ids] += scored.scores
        counts[one.ids] += 1
    assert scored is not None, "there is a surrogate"
    if scoring.reference is not None and scoring.reference.holdout is not None:
        counts[scoring.reference.trained_on(size, seed=scoring.settings.seed)[0]] = 0
    return replace(scored, scores=np.where(counts, totals / np.maximum(counts, 1), np.nan).astype(np.float32))


def _passes(scoring: Scoring, epochs: int) -> int:
    if not isinstance(scoring.method, StaticMethod):
        return 0
    return epochs if scoring.method.passes_every_epoch else 1


def _labels(size: int, told: Sequence[Told]) -> NDArray[np.int64] | None:
    labels = np.full(size, -1)
    for one in told:
        if one.labels is None:
            return None
        labels[one.ids] = one.labels
    return labels


def _chosen(
    scoring: Scoring,
    layout: DatasetLayout,
    scored: Scored,
    labels: NDArray[np.int64] | None,
    keep: int,
) -> SkipList:
    choice, settings = scoring.choice, scoring.settings
    assert choice.prune_ratio is not None
    if scored.left_out is not None and keep > (most := int(np.count_nonzero(~scored.left_out))):
        least = np.ceil(1e4 * (1 - most / layout.num_samples)) / 1e4
        raise ConfigError(
            f"prune_ratio is {choice.prune_ratio}, which keeps {keep} of {layout.num_samples} samples, but {most} can "
            f"be kept: {scored.note}. The scores are written, a skip-list is not; "
            + (f"set prune_ratio to at least {least:.4g}." if most else "there is nothing to choose from.")
        )
    marks = choose_subset(
        -scored.scores if scoring.keeps_lowest else scored.scores,
        keep,
        left_out=scored.left_out,
        labels=labels,
        balance=choice.balance,
        strata=choice.strata,
        cutoff=choice.cutoff,
        seed=settings.seed,
    )
    return SkipList.from_keep_mask(
        layout,
        marks,
        epoch=0,
        keep_ratio=1 - choice.prune_ratio,
        method=type(scoring.method).__name__,
        run=settings.run_name,
        weights=None if scored.weights is None else scored.weights[marks],
    )


def _versions() -> str:
    packages = {"ted-stream": version("ted-stream"), "torch": torch.__version__, "numpy": np.__version__}
    return ", ".join(f"{name} {number}" for name, number in {**packages, "python": platform.python_version()}.items())
