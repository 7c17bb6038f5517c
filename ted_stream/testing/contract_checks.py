"""What every method keeps in whole runs, whatever the host: what is compared of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ted_stream.engine.folding import fold_epoch
from ted_stream.engine.given import Given
from ted_stream.methods import Method
from ted_stream.pruning import Measurements, Owned, ScoreStore, num_kept
from ted_stream.sampler import PrunedSampler
from ted_stream.skip_list import read_skip_list
from ted_stream.testing.contract_parts import InMemory
from ted_stream.testing.contract_runs import DEATHS, EPOCHS, EVEN, Death, long_deaths, other_ways, run_name
from ted_stream.testing.runs import load_result, steps_of

__all__ = ["HOST_CHECKS", "long_run_checks", "run_checks"]

Check = Callable[[Method, Path, str], None]  # of a method, the folder of all runs, and what the runs' names begin with


def prunes(method: Method, out: Path, name: str) -> None:
    """The comparisons could not fail for a run that keeps everything."""
    records = load_result(out, f"{name}-one")["records"]
    assert min(record["kept"] for record in records) < EVEN, f"{method!r} prunes nothing in {EPOCHS} epochs"


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
    """The same records and lists.

    Composer multiplies a part's loss by its share of the batch in float32, which of a partial batch is rounded.
    """
    found, expected = load_result(out, f"{name}-microbatches"), load_result(out, f"{name}-one")
    _assert_alike(found, expected, rtol=1e-6, atol=1e-8)


def _assert_alike(found: dict[str, Any], expected: dict[str, Any], **tolerance: float) -> None:
    for mine, other in zip(found["records"], expected["records"], strict=True):
        assert mine == other, f"epoch {mine['epoch']} differs"
    _assert_close(found, expected, **tolerance)


def _assert_close(found: dict[str, Any], expected: dict[str, Any], *, rtol: float = 1e-9, atol: float = 1e-12) -> None:
    """Scores, and weights within the tolerance."""
    np.testing.assert_allclose(found["scores"], expected["scores"], rtol=1e-6, atol=1e-12)
    for layer, weights in expected["weights"].items():
        np.testing.assert_allclose(found["weights"][layer], weights, rtol=rtol, atol=atol)


def trains_with_workers_as_without(method: Method, out: Path, name: str) -> None:
    """To the bit; without dropout, whose generator DataLoaders with workers use otherwise."""
    for rank in range(2):
        _assert_equal(out, f"{name}-workers", f"{name}-ddp", rank)


def _resumes(deaths: Mapping[str, Death]) -> Check:
    def resumes_to_the_bit(method: Method, out: Path, name: str) -> None:
        """A run that died by SIGKILL and went on by itself ends as the one that lived: weights, scores, records."""
        for what, death in deaths.items():
            for rank in range(2):
                _assert_equal(out, f"{name}-{what}", f"{name}-{death.like}", rank)

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
    dataset = InMemory(len(result["scores"]), torch.float32, None)
    store = ScoreStore(len(dataset), method.running(), labelled=method.needs_labels)
    given = Given(method, PrunedSampler(dataset).layout, store).owned
    steps = [steps_of(out, name, rank) for rank in range(2)]
    for epoch, record in enumerate(result["records"]):
        owned = Owned(store, epoch=epoch, seed=0, given=given)
        ratio = method.keep_ratio(epoch, EPOCHS)
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
        # Where the training step matters too, repeats are left to the store.
        by_step = store.running.relative or store.running.window is not None
        measured = measured if by_step else _once(measured)
        store.pending = dict(chosen.columns)
        fold_epoch(method, store, replace(measured, labels=dataset.y.numpy()[measured.ids]), epoch)
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


def trains_as_in_other_hosts(method: Method, out: Path, name: str, hosts: Sequence[str]) -> None:
    """The same records, lists, samples in every batch, measurements, scores and weights, to the bit.

    Args:
        method: of the runs.
        out: the folder of all runs.
        name: that the runs were made with, without the host.
        hosts: that are compared, all with the first.
    """
    first, *others = hosts
    for host in others:
        for what, ranks in (("one", 1), ("ddp", 2)):
            for rank in range(ranks):
                _assert_equal(out, f"{run_name(name, host)}-{what}", f"{run_name(name, first)}-{what}", rank)


_IN_OTHER_WAYS: dict[str, Check] = {
    "microbatches": trains_in_microbatches_as_whole,
    "workers": trains_with_workers_as_without,
    "fsdp": trains_sharded_as_replicated,
}
HOST_CHECKS: tuple[Callable[[Method, Path, str, Sequence[str]], None], ...] = (trains_as_in_other_hosts,)


def run_checks(host: str) -> tuple[Check, ...]:
    """What is checked of :func:`~ted_stream.testing.contract_runs.contract_runs` in a host."""
    always = (prunes, trains_on_two_ranks_as_on_one, _resumes(DEATHS), lists_follow_from_measurements)
    return (*always, *(_IN_OTHER_WAYS[way] for way in other_ways(host)))


def long_run_checks(host: str) -> tuple[Check, ...]:
    """What is checked of :func:`~ted_stream.testing.contract_runs.long_contract_runs` in a host."""
    return (_resumes(long_deaths(host)),)
