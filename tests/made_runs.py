"""Folders of runs with known content, made without training: what the engine writes, of scores that a seed gives."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ted_stream.engine import EpochRecord
from ted_stream.engine.record import SCORE_QUANTILES
from ted_stream.export import export_run
from ted_stream.export.run_files import RUN_FILE, SCORES, list_name, run_to_bytes, running_scores_to_bytes
from ted_stream.files import write_bytes
from ted_stream.skip_list import DatasetLayout, ShardLayout, SkipList, StreamLayout, write_skip_list

Choose = Callable[[int, NDArray[np.float32], np.random.Generator], NDArray[np.bool_]]


def layout_of(samples: int, shards: int = 4) -> DatasetLayout:
    counts = np.diff(np.linspace(0, samples, shards + 1).astype(int)).tolist()
    made = tuple(ShardLayout(name=f"shard.{at:05d}.mds", size=100, samples=count) for at, count in enumerate(counts))
    return DatasetLayout(streams=(StreamLayout(shards=made),))


def highest_of(share: float) -> Choose:
    """Keeps the highest scores."""

    def choose(epoch: int, scores: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.bool_]:
        del epoch, rng
        keep = np.zeros(len(scores), np.bool_)
        keep[np.argsort(-scores, kind="stable")[: round(share * len(scores))]] = True
        return keep

    return choose


def make_run(
    folder: Path,
    layout: DatasetLayout,
    *,
    epochs: int = 6,
    planned_epochs: int | None = None,
    choose: Choose | None = None,
    scored: bool = True,
    finished: bool = True,
    name: str = "made",
    seed: int = 0,
) -> list[SkipList]:
    """Write a run that keeps all in its first epoch and its last, and in between half, or what ``choose`` says.

    Returns:
        The list of each epoch.
    """
    choose = choose or highest_of(0.5)
    rng, size = np.random.default_rng(seed), layout.num_samples
    scores = rng.normal(size=size).astype(np.float32)
    lists: list[SkipList] = []
    records: list[EpochRecord] = []
    total = planned_epochs or epochs
    for epoch in range(epochs):
        scores = (scores + 0.3 * rng.normal(size=size)).astype(np.float32)
        keep = np.ones(size, np.bool_) if epoch in (0, total - 1) else choose(epoch, scores, rng)
        ratio = float(keep.mean())
        made = SkipList.from_keep_mask(layout, keep, epoch=epoch, keep_ratio=ratio, method="TED", run=name)
        write_skip_list(made, folder / list_name(epoch))
        before = lists[-1].keep_mask() if lists else keep
        records.append(
            EpochRecord(
                epoch=epoch,
                keep_ratio=ratio,
                kept=made.num_kept,
                returning=int((keep & ~before).sum()),
                unmeasured=0,
                score_quantiles={str(p): float(np.quantile(scores, p)) for p in SCORE_QUANTILES} if scored else {},
                skip_list=list_name(epoch),
                digest=made.digest,
                forwarded=made.num_kept,
            )
        )
        lists.append(made)
    done = sum(record.forwarded for record in records)
    run = {
        "method": "TED",
        "settings": "TED(prune_ratio=0.5)",
        "seed": seed,
        "run": name,
        "dataset": layout.fingerprint,
        "samples": size,
        "output_layer": "head",
        "max_epochs": total,
        "planned_save_ratio": 0.4,
        "save_ratio": 1 - done / (size * epochs) if epochs else 0.0,
        "epochs": [asdict(record) for record in records],
        "finished": finished,
        "job": "0",
    }
    write_bytes(folder / RUN_FILE, run_to_bytes(run))
    if scored and epochs:
        write_bytes(folder / SCORES, running_scores_to_bytes(scores, epoch=epochs - 1, layout=layout))
    pruned = [made for made in lists if made.num_kept < size]
    if finished and pruned:
        export_run(folder)
    return lists
