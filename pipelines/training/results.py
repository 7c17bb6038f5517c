"""What a run did."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ted_stream.engine import PruningEngine
from ted_stream.export.run_files import LISTS, MANIFEST, pruned_epochs
from ted_stream.files import join

from .hub_models import MODEL_FOLDER
from .settings import Settings, counts_batches

__all__ = ["FREE_SETTINGS", "RESULT_FILE", "Result", "Trained", "digest_of", "result_of"]

RESULT_FILE = "result.json"
FREE_SETTINGS = ("autoresume", "overwrite", "progress_bar", "folder", "save_interval", "eval_interval", "save_model")


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a trainer tells of its run; see `Result`."""

    epochs: int
    metrics: dict[str, float]
    forwarded: int
    tokens: int
    seconds: float
    wall_seconds: float
    engine: PruningEngine | None
    """Of the pruning, if the run pruned in this process."""
    pruning: Mapping[str, Any] | None
    """What ``run.json`` holds, if the run pruned."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a run did, as kept in ``result.json``.

    Attributes:
        run_name: of the settings.
        trainer: of the settings.
        method: of the settings.
        seed: of the settings.
        epochs: trained.
        metrics: test metrics at the end, by name; accuracy in [0, 1], cross entropies in nats.
        samples: in the training split.
        forwarded: samples put through the model in training, over all ranks.
        save_ratio: 1 − forwarded / what full data forwards in as many epochs: samples · epochs, with what ranks are
            padded by, and without what data.drop_last leaves out of full data too.
        tokens: put through the model in training, padding apart; ``None`` of images.
        token_save_ratio: 1 − tokens / (those of full data in as many epochs), as `save_ratio`; ``None`` of images, and
            where the split's are not known.
        planned_save_ratio: what the schedule promised; 0 without pruning, ``None`` where the method decides as it goes.
        seconds: of training, evaluation apart.
        wall_seconds: of this process' training, with evaluation and checkpoints.
        folder: of the run.
        skip_lists: folder of the run's skip-lists, if it pruned.
        manifest: Parquet of kept samples with scores, if it pruned.
        asked: digest of the settings.
        model: folder of the trained model, for other tools, if it began as one of theirs.
        data: digest of the dataset's content.
    """

    run_name: str
    trainer: str
    method: str
    seed: int
    epochs: int
    metrics: dict[str, float]
    samples: int
    forwarded: int
    save_ratio: float
    planned_save_ratio: float | None
    seconds: float
    wall_seconds: float
    folder: str
    skip_lists: str | None
    manifest: str | None
    asked: str
    tokens: int | None = None
    token_save_ratio: float | None = None
    model: str | None = None
    data: str | None = None


def digest_of(settings: Settings) -> str:
    """Hex sha256 of all settings but those that another attempt at the same run may have other values of."""
    given = {name: value for name, value in asdict(settings).items() if name not in FREE_SETTINGS}
    return hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()


def result_of(
    settings: Settings, trained: Trained, *, data: str, samples: int, full_epoch: int, all_tokens: int | None
) -> Result:
    """The result of a run.

    Args:
        settings: of the run.
        trained: what its trainer tells.
        data: digest of the dataset's content.
        samples: in the training split.
        full_epoch: samples that an epoch of full data forwards.
        all_tokens: of the training split, where they are known.
    """
    folder, pruning = settings.folder, trained.pruning
    pruned = pruning is not None and bool(pruned_epochs(pruning))
    whole = (all_tokens or 0) * full_epoch / samples * trained.epochs
    has_all = bool(trained.tokens and whole) and settings.data.skip_list is None and not counts_batches(settings)
    return Result(
        run_name=settings.run_name,
        trainer=settings.trainer,
        method=settings.pruning.method,
        seed=settings.seed,
        epochs=trained.epochs,
        metrics=trained.metrics,
        samples=samples,
        forwarded=trained.forwarded,
        # In batches the last epoch is one in part, of a run that leaves nothing out.
        save_ratio=0.0 if counts_batches(settings) else 1 - trained.forwarded / (full_epoch * trained.epochs),
        planned_save_ratio=0.0 if pruning is None else pruning["planned_save_ratio"],
        seconds=trained.seconds,
        wall_seconds=trained.wall_seconds,
        folder=folder,
        skip_lists=None if pruning is None else join(folder, LISTS),
        manifest=join(folder, MANIFEST) if pruned else None,
        asked=digest_of(settings),
        tokens=trained.tokens or None,
        token_save_ratio=1 - trained.tokens / whole if has_all else None,
        model=join(folder, MODEL_FOLDER) if settings.model.pretrained and settings.save_model else None,
        data=data,
    )
