"""What a checkpoint holds of a run, and whether a run may go on with it."""

from collections.abc import Mapping
from typing import Any
from warnings import warn

import numpy as np
import torch

from ted_stream.engine.ranks import Ranks
from ted_stream.pruning import Communicator, Measurements
from ted_stream.skip_list import DatasetLayout

__all__ = [
    "STATE_VERSION",
    "goes_on_at",
    "load_measurements",
    "pack_measurements",
    "refuse_other_state",
    "refuse_other_streams",
    "streams_of",
    "warn_of_missing_scores",
]

STATE_VERSION = 4
_READABLE = (3, STATE_VERSION)  # 3 has records without the figures that the guard looks at


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


def refuse_other_state(state: dict[str, Any], mine: dict[str, Any], *, allow_other_settings: bool) -> None:
    """Refuse a state that another version wrote, or that belongs to another dataset, method, setting or seed.

    Args:
        state: of the checkpoint.
        mine: ``method``, ``seed`` and ``given`` of this run, and what :func:`streams_of` says of its data.
        allow_other_settings: pass over another method or seed.

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
    """The measurements of all ranks, (m,) int64 each; of floats the bits, since NaN equals nothing.

    Args:
        mine: of this rank.
        communicator: the ranks.
        everywhere: all ranks get them; else rank 0 alone, and the others nothing.
    """
    gather = communicator.all_gather if everywhere else communicator.gather
    packed = {}
    columns = {"ids": mine.ids, "importance": mine.importance, "steps": mine.steps}
    noted = np.array([mine.labels is not None], np.int64)
    if communicator.all_reduce_sum(noted)[0]:  # classes, on some rank
        columns["labels"] = mine.all_labels
    for name, column in columns.items():
        parts = gather(column.view(np.int64))
        if parts is not None:
            packed[name] = torch.from_numpy(np.concatenate(parts))
    return packed


def load_measurements(packed: dict[str, torch.Tensor], ranks: Ranks) -> Measurements:
    """This rank's share of packed measurements. Any share will do: owners get theirs when the epoch is folded."""
    parts = {name: values.cpu().numpy()[ranks.rank :: ranks.world_size] for name, values in packed.items()}
    importance = np.ascontiguousarray(parts["importance"]).view(np.float64)
    return Measurements(ids=parts["ids"], importance=importance, steps=parts["steps"], labels=parts.get("labels"))
