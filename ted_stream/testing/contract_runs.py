"""What every method keeps in whole runs: which runs those are, and what is compared."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ted_stream.methods import Method
from ted_stream.pruning import Measurements, Owned, ScoreStore, num_kept
from ted_stream.skip_list import read_skip_list
from ted_stream.testing.runs import Run, described, load_result, steps_of

__all__ = ["LONG_RUN_CHECKS", "RUN_CHECKS", "contract_runs", "long_contract_runs"]

_EPOCHS = 4
_EVEN, _ODD = 64, 61  # samples: shared out among two ranks evenly, and not

# By the name of the run that is killed: the run that it must end as, checkpoints, and where it dies.
_DEATHS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "killed": ("lived", "2ba", {"rank": 1, "event": "after_backward", "epoch": 2, "batch": 1}),
}
_LONG_DEATHS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "killed-checkpointing": ("lived", "1ba", {"rank": 0, "event": "batch_checkpoint", "epoch": 1, "batch": 2}),
    "killed-choosing": ("lived", "1ep", {"rank": 1, "event": "selected", "epoch": 2}),
    "killed-writing": ("lived", "3ba", {"rank": 0, "event": "writing", "epoch": 1}),
    "killed-full": ("lived-sharding", "2ba", {"rank": 0, "event": "batch_end", "epoch": 1, "batch": 3}),
    "killed-sharded": ("lived-sharding", "1ba", {"rank": 1, "event": "before_forward", "epoch": 2, "batch": 2}),
    "killed-streaming": ("lived-streaming", "2ba", {"rank": 1, "event": "batch_start", "epoch": 2, "batch": 1}),
}


def contract_runs(name: str, method: Method) -> list[Run]:
    """The runs that :data:`RUN_CHECKS` compare.

    Args:
        name: what their names begin with.
        method: with settings that prune from the second epoch on at the latest.
    """
    ddp = replace(_lived(name, method), name=f"{name}-ddp", num_samples=_EVEN, dropout=0.0, double=True)
    lived = _lived(name, method)
    return [
        replace(ddp, name=f"{name}-one", ranks=1),
        replace(ddp, name=f"{name}-microbatches", ranks=1, microbatch_size=3),
        ddp,
        replace(ddp, name=f"{name}-workers", workers=2),
        replace(ddp, name=f"{name}-fsdp", parallelism="full"),
        lived,
        *_killed(name, [lived], _DEATHS),
    ]


def long_contract_runs(name: str, method: Method, data: str) -> list[Run]:
    """More of them, for :data:`LONG_RUN_CHECKS`.

    Args:
        name: what their names begin with.
        method: with settings that prune from the second epoch on at the latest.
        data: folder of a streaming dataset (see :class:`Run`).
    """
    lived = _lived(name, method)
    others = [
        lived,
        replace(lived, name=f"{name}-lived-sharding", parallelism="full", workers=2),
        replace(lived, name=f"{name}-lived-streaming", data=data, workers=2),
    ]
    return [*others, *_killed(name, others, _LONG_DEATHS)]


def _lived(name: str, method: Method) -> Run:
    settings: dict[str, Any] = described(method)
    return Run(name=f"{name}-lived", epochs=_EPOCHS, num_samples=_ODD, dropout=0.2, **settings)


def _killed(name: str, lived: list[Run], deaths: dict[str, tuple[str, str, dict[str, Any]]]) -> list[Run]:
    by_name = {run.name: run for run in lived}
    runs = []
    for what, (like, interval, kill) in deaths.items():
        again = replace(by_name[f"{name}-{like}"], name=f"{name}-{what}", save_interval=interval)
        if what == "killed-sharded":
            again = replace(again, parallelism="sharded")
        runs += [replace(again, kill=kill), again]
    return runs


def prunes(method: Method, out: Path, name: str) -> None:
    """The comparisons could not fail for a run that keeps everything."""
    records = load_result(out, f"{name}-one")["records"]
    assert min(record["kept"] for record in records) < _EVEN, f"{method!r} prunes nothing in {_EPOCHS} epochs"


def trains_on_two_ranks_as_on_one(method: Method, out: Path, name: str) -> None:
    """The same records and lists, until two ranks share out an odd number, and so train on one sample twice."""
    one, two = load_result(out, f"{name}-one"), load_result(out, f"{name}-ddp")
    for mine, other in zip(one["records"], two["records"], strict=True):
        padded = other["forwarded"] - mine["forwarded"]
        assert {**other, "forwarded": mine["forwarded"]} == mine, f"epoch {mine['epoch']} differs on two ranks"
        assert padded == mine["kept"] % 2
        if padded:
            return
    _assert_close(two, one)


def trains_sharded_as_replicated(method: Method, out: Path, name: str) -> None:
    """FSDP2 makes the records and lists of DDP."""
    _assert_alike(load_result(out, f"{name}-fsdp"), load_result(out, f"{name}-ddp"))


def trains_in_microbatches_as_whole(method: Method, out: Path, name: str) -> None:
    """The same records and lists."""
    _assert_alike(load_result(out, f"{name}-microbatches"), load_result(out, f"{name}-one"))


def _assert_alike(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for mine, other in zip(found["records"], expected["records"], strict=True):
        assert mine == other, f"epoch {mine['epoch']} differs"
    _assert_close(found, expected)


def _assert_close(found: dict[str, Any], expected: dict[str, Any]) -> None:
    np.testing.assert_allclose(found["scores"], expected["scores"], rtol=1e-6, atol=1e-12)
    for layer, weights in expected["weights"].items():
        np.testing.assert_allclose(found["weights"][layer], weights, rtol=1e-9, atol=1e-12)


def trains_with_workers_as_without(method: Method, out: Path, name: str) -> None:
    """To the bit; without dropout, whose generator DataLoaders with workers use otherwise."""
    for rank in range(2):
        _assert_equal(out, f"{name}-workers", f"{name}-ddp", rank)


def _resumes(deaths: dict[str, tuple[str, str, dict[str, Any]]]) -> Callable[[Method, Path, str], None]:
    def resumes_to_the_bit(method: Method, out: Path, name: str) -> None:
        """A run that died by SIGKILL and went on by itself ends as the one that lived: weights, scores, records."""
        for what, (like, _, _) in deaths.items():
            for rank in range(2):
                _assert_equal(out, f"{name}-{what}", f"{name}-{like}", rank)

    return resumes_to_the_bit


def _assert_equal(out: Path, name: str, like: str, rank: int) -> None:
    found, expected = load_result(out, name, rank), load_result(out, like, rank)
    assert found["records"] == expected["records"], f"the records of {name} are not those of {like}"
    assert np.array_equal(found["scores"], expected["scores"], equal_nan=True), f"the scores of {name} differ"
    assert found["weights"].keys() == expected["weights"].keys()
    for layer, weights in expected["weights"].items():
        assert np.array_equal(found["weights"][layer], weights), f"{layer} of {name} differs from that of {like}"
    assert steps_of(out, name, rank) == steps_of(out, like, rank), f"{name} trained in another order than {like}"


def lists_follow_from_measurements(method: Method, out: Path, name: str) -> None:
    """What each epoch kept is what one process chooses from what was measured, a repeated sample counted once.

    The samples that were trained on are those kept, and one more where two ranks share out an odd number.
    """
    for what in ("ddp", "lived", "killed"):
        _replay(method, out, f"{name}-{what}")


def _replay(method: Method, out: Path, name: str) -> None:
    result = load_result(out, name)
    store = ScoreStore(len(result["scores"]), method.running())
    steps = [steps_of(out, name, rank) for rank in range(2)]
    for epoch, record in enumerate(result["records"]):
        owned = Owned(store, epoch=epoch, seed=0)
        ratio = method.keep_ratio(epoch, _EPOCHS)
        chosen = method.choose(owned, epoch, None if ratio is None else num_kept(ratio, store.num_samples))
        weights = method.weigh(owned, chosen, np.count_nonzero(chosen.keep) / len(owned) if ratio is None else ratio)
        skip_list = read_skip_list(out / name / "run" / record["skip_list"], digest=record["digest"])
        kept = skip_list.kept_ids().tolist()
        assert kept == np.flatnonzero(chosen.keep).tolist(), f"epoch {epoch} of {name} kept others"
        if not isinstance(weights, np.ndarray):
            assert (record["loss_factor"], skip_list.weights) == (weights, None)
        elif (weights != 1).any():
            assert skip_list.weights is not None
            assert np.array_equal(skip_list.weights, weights), f"epoch {epoch} of {name} weighs otherwise"
        measured = _measurements(steps, epoch)
        trained = measured.ids.tolist()
        assert sorted(set(trained)) == kept, f"epoch {epoch} of {name} did not train on what it kept"
        assert len(trained) == record["forwarded"] == len(kept) + len(kept) % 2
        if method.measure() is not None:
            # Of a relative score the training step matters too, so repeats are left to the store.
            store.update(measured if store.running.relative else _once(measured))
    assert np.array_equal(store.scores, result["scores"], equal_nan=True), f"the scores of {name} are others"


def _measurements(steps: list[Any], epoch: int) -> Measurements:
    """What all ranks measured in an epoch."""
    rows = [
        (sample, value, batch)
        for of_rank in steps
        for (at, batch), (ids, values) in of_rank.items()
        for sample, value in zip(ids, values, strict=True)
        if at == epoch
    ]
    ids, values, batches = zip(*rows, strict=True)
    return Measurements(ids=np.array(ids), importance=np.array(values), steps=np.array(batches))


def _once(measured: Measurements) -> Measurements:
    """The mean of each sample's measurements."""
    ids = np.unique(measured.ids)
    means = np.array([measured.importance[measured.ids == sample].mean() for sample in ids])
    return Measurements(ids=ids, importance=means, steps=np.zeros_like(ids))


RUN_CHECKS: tuple[Callable[[Method, Path, str], None], ...] = (
    prunes,
    trains_on_two_ranks_as_on_one,
    trains_sharded_as_replicated,
    trains_in_microbatches_as_whole,
    trains_with_workers_as_without,
    _resumes(_DEATHS),
    lists_follow_from_measurements,
)
LONG_RUN_CHECKS: tuple[Callable[[Method, Path, str], None], ...] = (_resumes(_LONG_DEATHS),)
