"""What a checkpoint holds of a run, and whether a run may go on with it."""

from collections.abc import Mapping
from typing import Any
from warnings import warn

import numpy as np
import torch
from numpy.typing import NDArray

from ted_stream.engine.ranks import Ranks
from ted_stream.methods import Method
from ted_stream.pruning import Communicator, Measurements
from ted_stream.skip_list import DatasetLayout

__all__ = [
    "STATE_VERSION",
    "goes_on_at",
    "identity_of",
    "load_measurements",
    "pack_measurements",
    "refuse_other_state",
    "refuse_other_streams",
    "streams_of",
    "warn_of_missing_scores",
]

STATE_VERSION = 5
# 3 has records without figures of the guard; 3 and 4 have a step and a class of every measurement.
_READABLE = range(3, STATE_VERSION + 1)


def streams_of(layout: DatasetLayout) -> dict[str, list[str]]:
    """What a state holds of the data that its scores belong to: names of the streams, with and without content."""
    return {"stream_keys": list(layout.stream_keys), "shape_keys": list(layout.shape_keys)}


def refuse_other_streams(scored: Mapping[str, list[str]], found: Mapping[str, list[str]]) -> None:
    """Refuse data of other streams than those that the scores belong to.

    Where the content of one of them is unknown they may agree; reading the last skip-list warns of that.

    Args:
        scored: what :func:`streams_of` says of them; without ``shape_keys`` where an earlier version said it.
        found: the same of the data.

    Raises:
        ValueError: naming both.
    """
    ours, theirs = scored["stream_keys"], found["stream_keys"]
    our_shapes, their_shapes = scored.get("shape_keys", ours), found["shape_keys"]
    if our_shapes != their_shapes:
        raise ValueError(
            f"The scores belong to the streams {ours}, the training dataset has {theirs}: scores go by sample id, so "
            "they would go to the wrong samples. Give the dataset of the run, its streams in the order that it started "
            "with, or start a new run."
        )
    if ours != theirs and ours != our_shapes and theirs != their_shapes:
        raise ValueError(
            f"The scores belong to the streams {ours}, the training dataset has {theirs}: the names, sizes and sample "
            "counts of all shards agree, but the content differs. The data was made anew or replaced, or its streams "
            "come in another order, and the scores would go to other samples. Give the dataset of the run, its streams "
            "in the order that it started with, or start a new run."
        )


def identity_of(method: Method, seed: int, given: Mapping[str, str], *, seed_samples: bool) -> dict[str, Any]:
    """What a state holds of the run that made it.

    Args:
        method: that prunes.
        seed: of ties and draws.
        given: digests, by name, of what the method was given of the samples.
        seed_samples: whether samples are read under random states of their own.
    """
    return {
        "version": STATE_VERSION,
        "method": repr(method),
        "seed": seed,
        "given": given,
        "seed_samples": seed_samples,
    }


def refuse_other_state(state: dict[str, Any], mine: dict[str, Any], *, allow_other_settings: bool) -> None:
    """Refuse a state that another version wrote, or that belongs to another dataset, method, setting or seeding.

    Args:
        state: of the checkpoint.
        mine: what :func:`identity_of` says of this run, and :func:`streams_of` of its data.
        allow_other_settings: pass over another method, seed or seeding.

    Raises:
        ValueError: naming both values.
    """
    if state.get("version") not in _READABLE:
        raise ValueError(
            f"The checkpoint's pruning state has version {state.get('version')}, but this ted-stream reads versions "
            f"{_READABLE[0]} to {_READABLE[-1]}; resume with the version that wrote it."
        )
    refuse_other_streams(state, mine)
    others = sorted(name for name, digest in mine["given"].items() if state["given"].get(name, digest) != digest)
    if others and not allow_other_settings:
        raise ValueError(
            f"What {mine['method']} is given of the samples before the run ({', '.join(others)}) is another than when "
            "the checkpoint was made. Give what the run started with, start a new run, or pass "
            "allow_other_settings=True if you want the mixture."
        )
    if not allow_other_settings and any(state[name] != mine[name] for name in ("method", "seed")):
        raise ValueError(
            f"The checkpoint was made by {state['method']} with seed={state['seed']}, but this run has "
            f"{mine['method']} with seed={mine['seed']}: its scores would be mixed with others. Pass the settings of "
            "the checkpoint, start a new run, or pass allow_other_settings=True if you want the mixture."
        )
    seeded = state.get("seed_samples", mine["seed_samples"])  # which earlier versions do not tell
    if seeded != mine["seed_samples"] and not allow_other_settings:
        raise ValueError(
            f"The checkpoint was made with seed_samples={seeded}, but this run has seed_samples="
            f"{mine['seed_samples']}: what augmentation draws would follow from something else than before. "
            f"{'Seed' if seeded else 'Do not seed'} the samples (seed_samples={seeded}, of a map-style dataset "
            f"{'with' if seeded else 'without'} SeededSamples), start a new run, or pass allow_other_settings=True if "
            "you want the mixture."
        )


def warn_of_missing_scores(epoch: int) -> None:
    """Warn of a run that goes on at an epoch without the scores of those before."""
    warn(
        f"The run goes on at epoch {epoch} without scores of the epochs before: all samples count as never measured. "
        "Load a checkpoint that holds the state of this pruning, if there is one.",
        UserWarning,
        stacklevel=3,
    )


def goes_on_at(asked: str | None, measured: str) -> str | None:
    """The output layer that a resumed run measures at.

    Args:
        asked: the (end of the) name that was asked for.
        measured: the name that the run has measured at; empty where it needed none.

    Raises:
        ValueError: if they are two layers.
    """
    if asked and measured and measured != asked and not measured.endswith(f".{asked}"):
        raise ValueError(
            f"The checkpoint was measured at the output layer {measured!r}, but output_layer is {asked!r}: scores of "
            "two layers would be mixed. Drop output_layer, or start a new run."
        )
    return measured or asked


def pack_measurements(mine: Measurements, communicator: Communicator, *, everywhere: bool) -> dict[str, torch.Tensor]:
    """The measurements of all ranks, without classes: 8 bytes each, and 24 a run of batches of one size.

    ``ids`` (m,) int32; ``importance`` (m,) the int32 of float32's bits, since NaN equals nothing; ``steps`` (runs, 3)
    int64: the first step of each run, its batches, and the rows of one. Ids beyond int32, and what a float64 model
    measures, take 8 bytes instead of 4.

    Args:
        mine: of this rank.
        communicator: the ranks.
        everywhere: all ranks get them; else rank 0 alone, and the others nothing.
    """
    gather = communicator.all_gather if everywhere else communicator.gather
    small = np.iinfo(np.int32)
    outside = bool(((mine.ids < small.min) | (mine.ids > small.max)).any())
    wide = communicator.all_reduce_sum(np.array([outside, mine.importance.dtype == np.float64], np.int64))
    columns = {
        "ids": mine.ids if wide[0] else mine.ids.astype(np.int32),
        "importance": mine.importance.astype(np.float64).view(np.int64) if wide[1] else mine.importance.view(np.int32),
        "steps": _runs_of(mine.steps).ravel(),
    }
    packed = {}
    for name, column in columns.items():
        parts = gather(column)
        if parts is not None:
            packed[name] = torch.from_numpy(np.concatenate(parts))
    if "steps" in packed:
        packed["steps"] = packed["steps"].reshape(-1, 3)
    return packed


def load_measurements(packed: dict[str, torch.Tensor], ranks: Ranks) -> Measurements:
    """This rank's share of packed measurements. Any share will do: owners get theirs when the epoch is folded."""
    total = len(packed["ids"])
    first, last = (total * rank // ranks.world_size for rank in (ranks.rank, ranks.rank + 1))
    # Copies, or all of it would stay for as long as a part does.
    parts = {name: values[first:last].cpu().numpy().copy() for name, values in packed.items() if name != "steps"}
    importance = parts["importance"].view(np.float32 if parts["importance"].dtype == np.int32 else np.float64)
    steps = packed["steps"].cpu().numpy()
    if steps.ndim == 1:  # before version 5: one for every measurement
        steps = steps[first:last].copy()
    else:
        steps = _steps_of(steps, first, last)
    ids = parts["ids"].astype(np.int64)
    return Measurements(ids=ids, importance=importance, steps=steps, labels=parts.get("labels"))


def _runs_of(steps: NDArray[np.int64]) -> NDArray[np.int64]:
    """(runs, 3) int64: the first step of every run of batches of as many rows and one step after the other; both."""
    starts = np.flatnonzero(np.diff(steps, prepend=-1))
    step, rows = steps[starts], np.diff(starts, append=len(steps))
    is_new = np.ones(len(starts), np.bool_)
    is_new[1:] = (np.diff(step) != 1) | (np.diff(rows) != 0)
    new = np.flatnonzero(is_new)
    return np.stack([step[new], np.diff(new, append=len(starts)), rows[new]], axis=1).astype(np.int64)


def _steps_of(runs: NDArray[np.int64], first: int, last: int) -> NDArray[np.int64]:
    """(last - first,) int64, the steps of these of the measurements that the runs are of."""
    parts, start = [np.empty(0, np.int64)], 0
    for step, batches, rows in runs.tolist():
        low, high = max(first - start, 0), min(last - start, batches * rows)
        if low < high:
            parts.append(step + np.arange(low, high) // rows)
        start += batches * rows
    return np.concatenate(parts)
