"""The state of an unfinished epoch: its size, and that it goes on to the bit; earlier versions' too."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from guarded_runs import N, as_version_4, train
from numpy.typing import NDArray

from ted_stream import RCAP, TED, RePB
from ted_stream.engine import Ranks
from ted_stream.engine.state import load_measurements, pack_measurements
from ted_stream.methods import Method
from ted_stream.pruning import Communicator, Measurements, ScoreStore
from ted_stream.skip_list.errors import SkipListError
from ted_stream.testing.threads import run_ranks


class OfRank(Ranks):
    """Ranks by a communicator of their own."""

    def __init__(self, communicator: Communicator) -> None:
        self.communicator = communicator


class Alone:
    """A rank of several, that is asked nothing."""

    def __init__(self, rank: int, world_size: int) -> None:
        self.rank, self.world_size = rank, world_size


def measured(rank: int, ranks: int, *, batches: int, rows: int, dtype: Any = np.float32) -> Measurements:
    """Of a rank in an epoch without repeats whose last batch has a row less."""
    total = batches * rows - 1
    ids = np.random.default_rng(0).permutation(total * ranks).astype(np.int64)[rank::ranks]
    importance = np.random.default_rng(rank).random(total).astype(dtype)
    importance[::7] = np.nan
    return Measurements(ids=ids, importance=importance, steps=(np.arange(total) // rows).astype(np.int64))


def sorted_rows(parts: list[Measurements]) -> tuple[NDArray[np.int64], NDArray[np.floating], NDArray[np.int64]]:
    whole = Measurements.concatenate(parts)
    order = np.argsort(whole.ids, kind="stable")
    return whole.ids[order], whole.importance[order], whole.steps[order]


def size_of(packed: dict[str, torch.Tensor]) -> int:
    return sum(column.nbytes for column in packed.values())


@pytest.mark.parametrize("rows", [1, 2, 7, 64])
@pytest.mark.parametrize(("ranks", "again"), [(1, 1), (3, 3), (2, 5), (5, 2), (1, 4)])
def test_every_measurement_comes_back_in_less_than_9_bytes(rows: int, ranks: int, again: int) -> None:
    batches = 4000 // rows
    mine = [measured(rank, ranks, batches=batches, rows=rows) for rank in range(ranks)]
    packed = run_ranks(ranks, lambda ours: pack_measurements(mine[ours.rank], ours, everywhere=False))
    assert [bool(part) for part in packed] == [True, *[False] * (ranks - 1)]
    assert size_of(packed[0]) < 9 * len(packed[0]["ids"])
    loaded = [load_measurements(packed[0], OfRank(Alone(rank, again))) for rank in range(again)]  # pyright: ignore
    assert [len(part) - len(packed[0]["ids"]) // again in (0, 1) for part in loaded] == [True] * again
    for found, expected in zip(sorted_rows(loaded), sorted_rows(mine), strict=True):
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
    # What goes on on other ranks is saved again.
    more = run_ranks(again, lambda ours: pack_measurements(loaded[ours.rank], ours, everywhere=True))
    assert size_of(more[0]) < 9 * len(more[0]["ids"])
    for name in more[0]:
        assert all(torch.equal(more[0][name], other[name]) for other in more)


def test_steps_of_batches_of_any_size() -> None:
    steps = np.repeat(np.arange(3, 300), np.random.default_rng(0).integers(0, 4, 297)).astype(np.int64)
    ids = np.arange(len(steps), dtype=np.int64)
    mine = Measurements(ids=ids, importance=np.zeros(len(steps), np.float32), steps=steps)
    packed = pack_measurements(mine, Ranks().communicator, everywhere=False)
    for ranks in (1, 2, 5):
        loaded = [load_measurements(packed, OfRank(Alone(rank, ranks))) for rank in range(ranks)]  # pyright: ignore
        np.testing.assert_array_equal(np.concatenate([part.steps for part in loaded]), steps)
    none = pack_measurements(Measurements(), Ranks().communicator, everywhere=False)
    assert len(load_measurements(none, Ranks())) == 0


def test_what_takes_more_than_four_bytes_keeps_it() -> None:
    """On one rank alone, too: columns of all ranks have one type."""
    parts = [
        replace(measured(0, 2, batches=3, rows=4, dtype=np.float64), ids=np.arange(11) + (1 << 31)),
        Measurements(),
    ]
    packed = run_ranks(2, lambda ours: pack_measurements(parts[ours.rank], ours, everywhere=True))
    loaded = [load_measurements(packed[rank], OfRank(Alone(rank, 2))) for rank in range(2)]  # pyright: ignore
    for found, expected in zip(sorted_rows(loaded), sorted_rows(parts[:1]), strict=True):
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


METHODS = [TED(0.5, relative=True), RePB(0.5), RCAP(0.5)]


@pytest.mark.quick("TED-5")
@pytest.mark.filterwarnings("ignore::ted_stream.SelectionWarning")
@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_it_goes_on_to_the_bit(method: Method, version: int, tmp_path: Path) -> None:
    """From within an epoch; methods that look at steps, at their windows, and at classes."""
    whole, _ = train(method, tmp_path / "whole", epochs=5)
    for stop in (0, 2):
        folder = tmp_path / f"part{stop}"
        _, state = train(method, folder, epochs=5, stop=stop)
        if version == 4:
            as_version_4(state["pruner"]["engine"])
        torch.save(state, folder / "state.pt")
        again, _ = train(method, folder, epochs=5, state=torch.load(folder / "state.pt", weights_only=True))
        assert [record.digest for record in again.records] == [record.digest for record in whole.records]
        assert again.engine.scores().tobytes() == whole.engine.scores().tobytes()
        found, expected = (run.engine.state_dict() for run in (again, whole))
        assert found["first_classes"] == expected["first_classes"]
        assert sum(found["first_classes"]) == N


def test_every_list_of_the_epochs_before_must_be_there(tmp_path: Path) -> None:
    """Not only the one in force: ``run.json`` tells of all."""
    _, state = train(METHODS[0], tmp_path, epochs=5, stop=3)
    lists = {epoch: tmp_path / f"skip_lists/ep000{epoch}.parquet" for epoch in range(4)}
    own, run = lists[1].read_bytes(), (tmp_path / "run.json").read_bytes()
    lists[1].write_bytes(lists[2].read_bytes())
    with pytest.raises(SkipListError, match=r"ep0001\.parquet': digest is .*another list"):
        train(METHODS[0], tmp_path, epochs=5, state=state)
    lists[1].unlink()
    with pytest.raises(OSError, match=r"ep0001\.parquet of this run cannot be read.*Put the run folder back"):
        train(METHODS[0], tmp_path, epochs=5, state=state)
    assert (tmp_path / "run.json").read_bytes() == run
    lists[1].write_bytes(own)
    again, _ = train(METHODS[0], tmp_path, epochs=5, state=state)
    assert len(again.records) == 5


@pytest.mark.long
def test_a_hundred_million_samples(tmp_path: Path) -> None:
    """Half of their epoch measured, in batches of 256: scores and measurements, saved and loaded by eight ranks."""
    samples, half, rows = 100_000_000, 50_000_000, 256
    ids = np.random.default_rng(0).permutation(np.arange(samples, dtype=np.int32))[:half].astype(np.int64)
    importance = np.random.default_rng(1).random(half, np.float32)
    mine = Measurements(ids=ids, importance=importance, steps=np.arange(half) // rows)
    store = ScoreStore(samples)
    store.columns["score"][:] = np.random.default_rng(2).random(samples, np.float32)
    packed = pack_measurements(mine, store.communicator, everywhere=False)
    path = tmp_path / "state.pt"
    torch.save({"scores": store.state_dict(everywhere=False), "measurements": packed}, path)
    assert path.stat().st_size < 4.001 * samples + 8.001 * half
    del packed
    state = torch.load(path, weights_only=True, mmap=True)
    start = 0
    for rank in range(8):
        part = load_measurements(state["measurements"], OfRank(Alone(rank, 8)))  # pyright: ignore
        there = slice(start, start + len(part))
        assert np.array_equal(part.ids, mine.ids[there])
        assert np.array_equal(part.importance, mine.importance[there])
        assert np.array_equal(part.steps, mine.steps[there])
        start = there.stop
    assert start == half
    again = ScoreStore(samples)
    again.load_state_dict(state["scores"])
    assert np.array_equal(again.scores, store.scores)
