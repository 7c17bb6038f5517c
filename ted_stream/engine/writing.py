"""What a run leaves in its folder, epoch by epoch; collective, as all that the folder does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ted_stream.engine.record import EpochRecord
from ted_stream.engine.run_folder import RunFolder
from ted_stream.export import export_run
from ted_stream.export.run_files import SCORES, running_scores_to_bytes
from ted_stream.files import is_remote
from ted_stream.methods import Method
from ted_stream.pruning import ScoreStore
from ted_stream.skip_list import DatasetLayout, SkipList, from_bytes

if TYPE_CHECKING:
    from ted_stream.engine.engine import PruningEngine

__all__ = ["check_lists", "read_list", "summary_of_run", "write_last_manifest", "write_scores"]


def read_list(folder: RunFolder, record: EpochRecord, layout: DatasetLayout) -> SkipList:
    """The skip-list of an epoch that has begun.

    Raises:
        SkipListError: if it is another than it was.
        OSError: if it cannot be read.
    """
    name = record.skip_list
    return from_bytes(folder.read(name), source=folder.path(name), layout=layout, digest=record.digest)


def check_lists(folder: RunFolder, records: Sequence[EpochRecord]) -> None:
    """Look at the skip-lists of epochs that are over, which ``run.json`` goes on to vouch for.

    In a local folder alone: from an object store each would be fetched whole.

    Raises:
        SkipListError: if one is another than it was.
        OSError: if one cannot be read.
    """

    def check() -> None:
        for record in records:
            name = record.skip_list
            from_bytes(folder.read_here(name), source=folder.path(name), digest=record.digest)

    if not is_remote(folder.location):
        folder.ranks.on_rank_zero(check)


def write_scores(
    folder: RunFolder, records: Sequence[EpochRecord], method: Method, store: ScoreStore, layout: DatasetLayout
) -> None:
    """Keep the scores outside of checkpoints too: a killed run's are in none, or in one that cannot be resumed."""
    ended = [record.epoch for record in records if record.forwarded]
    if method.measure() is None or not ended:
        return
    scores = store.gather_on_rank_zero()

    def make() -> bytes:
        assert scores is not None, "rank 0 makes it"
        return running_scores_to_bytes(scores, epoch=ended[-1], layout=layout)

    folder.write(SCORES, make)


def write_last_manifest(folder: RunFolder, records: Sequence[EpochRecord], num_samples: int) -> None:
    """Write the manifest of what the last pruned epoch kept, of a folder that holds all else; none without pruning."""
    if any(record.kept < num_samples for record in records):
        folder.ranks.on_rank_zero(lambda: export_run(folder.root))


def summary_of_run(engine: PruningEngine, run: str) -> dict[str, Any]:
    """What ``run.json`` holds of a run of this name."""
    return {
        "method": type(engine.method).__name__,
        "settings": repr(engine.method),
        "seed": engine.seed,
        "run": run,
        "dataset": engine.data.layout.fingerprint,
        "samples": engine.store.num_samples,
        "output_layer": engine.output_layer,
        "max_epochs": engine.plan.epochs,
        "planned_save_ratio": engine.plan.save_ratio,
        "save_ratio": engine.save_ratio,
        "epochs": [asdict(record) for record in engine.records],
    }
