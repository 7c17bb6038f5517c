"""What a pruned sampler is to its user."""

import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset, Subset, TensorDataset

from ted_stream import SkipList, SkipListError, write_skip_list
from ted_stream.sampler import BLOCK_SIZE, PrunedSampler

NUM_SAMPLES = 203


class Numbers(Dataset):
    """Sample i is i."""

    def __init__(self, length: int = NUM_SAMPLES) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> int:
        assert type(index) is int
        return index


def list_of(sampler: PrunedSampler, kept: Any) -> SkipList:
    mask = np.zeros(sampler.layout.num_samples, np.bool_)
    mask[kept] = True
    return SkipList.from_keep_mask(sampler.layout, mask, epoch=3, keep_ratio=0.4, method="test", run="test")


def some_kept(count: int = 75) -> NDArray[np.int64]:
    return np.sort(np.random.default_rng(0).permutation(NUM_SAMPLES)[:count])


def ranks_of(world_size: int, **arguments: Any) -> list[PrunedSampler]:
    return [PrunedSampler(Numbers(), world_size, rank, **arguments) for rank in range(world_size)]


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("world_size", [1, 2, 7])
def test_without_a_list_it_is_a_distributed_sampler(world_size: int, drop_last: bool, shuffle: bool) -> None:
    for length in (7, 8, NUM_SAMPLES):
        for rank in range(world_size):
            arguments = (Numbers(length), world_size, rank, shuffle, 5, drop_last)
            stock, ours = DistributedSampler(*arguments), PrunedSampler(*arguments)
            ours.activate(list_of(ours, [*range(length)]))  # an empty list changes nothing
            for epoch in (0, 1, 9):
                stock.set_epoch(epoch)
                ours.set_epoch(epoch)
                assert list(ours) == list(stock)
            assert (len(ours), ours.total_size) == (len(stock), stock.total_size)
    few = PrunedSampler(Numbers(2), 7, 6)
    assert list(few) == list(DistributedSampler(Numbers(2), 7, 6))


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("shuffle", [True, False])
def test_ranks_share_out_the_kept_samples(world_size: int, shuffle: bool) -> None:
    kept = some_kept()
    (alone,) = ranks_of(1, shuffle=shuffle, seed=3)
    samplers = ranks_of(world_size, shuffle=shuffle, seed=3)
    truncated = ranks_of(world_size, shuffle=shuffle, seed=3, drop_last=True)
    for sampler in (alone, *samplers, *truncated):
        sampler.activate(list_of(sampler, kept))
    unseen = set()
    for epoch in range(5):
        for sampler in (alone, *samplers, *truncated):
            sampler.set_epoch(epoch)
            assert len(list(sampler)) == len(sampler)
        order = list(alone)
        assert sorted(order) == kept.tolist()
        assert (order == kept.tolist()) != shuffle
        padded = np.stack([list(sampler) for sampler in samplers], axis=1).ravel().tolist()
        assert padded == order + order[: -len(order) % world_size]
        cut = np.stack([list(sampler) for sampler in truncated], axis=1).ravel().tolist()
        assert cut == order[: len(order) // world_size * world_size]
        unseen.add(tuple(sorted({*order} - {*cut})))
        assert all(len(ids) == len(order) % world_size for ids in unseen)
    assert (len(unseen) > 1) == (shuffle and world_size > 1)


def test_an_epoch_hangs_on_seed_and_epoch_alone() -> None:
    def order(seed: int, epoch: int, before: int = 0) -> list[int]:
        sampler = PrunedSampler(Numbers(), 1, 0, seed=seed)
        for _ in range(before):
            list(sampler)
        sampler.activate(list_of(sampler, some_kept()))
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(1, 4) == order(1, 4, before=2)
    assert len({tuple(order(seed, epoch)) for seed, epoch in [(1, 4), (1, 5), (7, 4)]}) == 3


def test_a_new_list_counts_from_the_next_epoch_on() -> None:
    sampler = PrunedSampler(Numbers(), 2, 1, shuffle=False)
    loader = DataLoader(Numbers(), batch_size=10, sampler=sampler)
    running = iter(sampler)
    assert next(running) == 1
    sampler.activate(list_of(sampler, range(100, 150)))
    assert list(running) == [*range(3, NUM_SAMPLES, 2), 0]
    assert (len(sampler), len(loader)) == (25, 3)
    assert list(sampler) == [*range(101, 150, 2)]
    sampler.activate(None)
    assert (len(sampler), len(loader)) == (102, 11)
    assert list(sampler) == [*range(1, NUM_SAMPLES, 2), 0]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["numbers", "subset", "hugging face"])
def test_the_ids_of_batches_are_known_without_reading_them(kind: str, workers: int) -> None:
    data: Any = {
        "numbers": Numbers(),
        "subset": Subset(TensorDataset(torch.arange(1000)), range(500, 500 + NUM_SAMPLES)),
        "hugging face": datasets.Dataset.from_dict({"at": list(range(NUM_SAMPLES))}).with_format("torch"),
    }[kind]
    values = {"numbers": lambda b: b, "subset": lambda b: b[0] - 500, "hugging face": lambda b: b["at"]}
    sampler = PrunedSampler(data, 2, 1)
    sampler.activate(list_of(sampler, some_kept()))
    loader = DataLoader(data, batch_size=8, sampler=sampler, num_workers=workers, persistent_workers=workers > 0)
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        sizes = []
        for number, batch in enumerate(loader):
            ids = sampler.ids_of_batch(number, 8)
            assert values[kind](batch).tolist() == ids.tolist()
            sizes.append(len(ids))
        assert sizes == [8, 8, 8, 8, 6]


@pytest.mark.parametrize("shuffle", [True, False])
def test_planning_takes_few_bytes_per_sample(shuffle: bool) -> None:
    """Bytes that numpy takes; torch's permutation of 4 per kept sample is gone before the other half of them comes."""
    length, ranks = 1 << 21, 2
    sampler = PrunedSampler(Numbers(length), ranks, 1, shuffle=shuffle)
    sampler.activate(list_of(sampler, np.arange(0, length, 2)))
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        ids = iter(sampler)
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    kept, slack = length // 2, 1 << 20  # for a block of ids
    assert next(ids) % 2 == 0
    assert after - before <= 4 * kept // ranks + 10_000
    assert peak - before <= length + 4 * kept + 4 * kept // ranks + slack


def test_ids_stay_exact_where_floats_do_not() -> None:
    sampler = PrunedSampler(Numbers(2**25 + 5), 1, 0)
    kept = np.array([3, 2**24 + 1, 2**24 + 3, 2**25 + 1, 2**25 + 4])
    sampler.activate(list_of(sampler, kept))
    assert sorted(sampler) == kept.tolist()
    assert sorted(sampler.ids_of_batch(0, 5).tolist()) == kept.tolist()


def test_a_fixed_list_by_value_and_by_path(tmp_path: Path) -> None:
    kept = some_kept()
    skip_list = list_of(PrunedSampler(Numbers(), 1, 0), kept)
    path = tmp_path / "list.parquet"
    write_skip_list(skip_list, path)
    for given in (skip_list, str(path), path):
        sampler = PrunedSampler(Numbers(), 1, 0, skip_list=given)
        assert sorted(sampler) == kept.tolist()
        assert len(sampler) == len(kept)
        assert sampler.fixed_skip_list == skip_list
    with pytest.raises(FileNotFoundError, match=r"nothing\.parquet"):
        PrunedSampler(Numbers(), 1, 0, skip_list=str(tmp_path / "nothing.parquet"))


def test_weights_that_nobody_would_apply_are_refused(tmp_path: Path) -> None:
    plain = PrunedSampler(Numbers(), 2, 1)
    skip_list = list_of(plain, some_kept())
    weighted = replace(skip_list, weights=np.linspace(0.5, 2, 75, dtype=np.float32))
    write_skip_list(weighted, tmp_path / "list.parquet")
    for given in (weighted, tmp_path / "list.parquet"):
        with pytest.raises(
            ValueError,
            match=r"list of test, epoch 3, weighs the 75 samples .* by 0\.5 to 2, and PrunedSampler has no loss "
            r".* Pass read_skip_list\(…\)\.without_weights\(\)",
        ):
            PrunedSampler(Numbers(), 2, 1, skip_list=given)
    alike = PrunedSampler(Numbers(), 2, 1, skip_list=weighted.without_weights())
    plain.activate(weighted)  # by one who applies them
    assert list(alike) == list(plain)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"dataset": Numbers(NUM_SAMPLES + 1)}, r"samples/000000000000-000000000202.*missing from the dataset"),
        ({"name": "cats"}, r"samples/000000000000-000000000202.*missing from the dataset"),
    ],
)
def test_a_list_of_another_dataset_is_refused(other: dict[str, Any], words: str) -> None:
    skip_list = list_of(PrunedSampler(Numbers(), 1, 0), some_kept())
    arguments = {"dataset": Numbers(), "num_replicas": 1, "rank": 0} | other
    with pytest.raises(SkipListError, match=words):
        PrunedSampler(**arguments, skip_list=skip_list)
    with pytest.raises(SkipListError, match=words):
        PrunedSampler(**arguments).activate(skip_list)


def test_skip_lists_have_a_row_per_block_of_ids() -> None:
    length = 2 * BLOCK_SIZE + 5
    sampler = PrunedSampler(Numbers(length), 1, 0, name="cats/train")
    assert [(shard.name, shard.samples, shard.size) for shard in sampler.layout.shards] == [
        ("cats/train/000000000000-000000065535", BLOCK_SIZE, 0),
        ("cats/train/000000065536-000000131071", BLOCK_SIZE, 0),
        ("cats/train/000000131072-000000131076", 5, 0),
    ]
    pruned = [[0, 7], [1], [4]]
    kept = np.setdiff1d(np.arange(length), [0, 7, BLOCK_SIZE + 1, length - 1])
    assert [list(bitmap) for bitmap in list_of(sampler, kept).pruned] == pruned
    assert PrunedSampler(Numbers(100_000_000), 1, 0).layout.num_shards == 1526


class Endless(IterableDataset):
    def __iter__(self) -> Any:
        return iter(range(3))


class NoLength(Dataset):
    def __getitem__(self, index: int) -> int:
        return index


def test_datasets_that_cannot_be_sampled_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Endless is not a map-style.*PrunedStreamingDataset"):
        PrunedSampler(Endless())
    with pytest.raises(ValueError, match="NoLength is not a map-style"):
        PrunedSampler(NoLength())
    with pytest.raises(ValueError, match="Numbers is empty"):
        PrunedSampler(Numbers(0))


def test_too_few_samples_are_refused() -> None:
    sampler = PrunedSampler(Numbers(), 4, 3)
    sampler.activate(list_of(sampler, [9]))
    assert list(sampler) == [9]
    with pytest.raises(ValueError, match=r"0 samples are to be kept.*takes 1 .* 4 ranks"):
        sampler.activate(list_of(sampler, []))
    sampler = PrunedSampler(Numbers(), 4, 3, drop_last=True)
    with pytest.raises(ValueError, match=r"3 samples are to be kept.*takes 4 .*drop_last=True"):
        sampler.activate(list_of(sampler, [1, 2, 3]))


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("drop_last", [True, False], ids=["sampler drops", "sampler repeats"])
@pytest.mark.parametrize("loader_drops", [True, False])
def test_the_fewest_samples_give_every_rank_a_batch(world_size: int, drop_last: bool, loader_drops: bool) -> None:
    samplers = ranks_of(world_size, drop_last=drop_last)
    loaders = [DataLoader(Numbers(), batch_size=4, sampler=each, drop_last=loader_drops) for each in samplers]
    (fewest, reason), *others = [each.fewest_for(loader) for each, loader in zip(samplers, loaders, strict=True)]
    assert all(other == (fewest, reason) for other in others)
    assert f"takes {fewest} to give each of {world_size} ranks a batch with drop_last={drop_last}" in reason

    def batches(kept: int) -> set[int]:
        for each in samplers:
            each.activate(list_of(each, range(kept)))
        return {len(list(loader)) for loader in loaders}

    assert batches(fewest) == {1}
    if fewest > samplers[0].fewest_samples:  # else it is refused
        assert batches(fewest - 1) == {0}


def test_rank_and_world_size_are_the_launchers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before there is a process group; DistributedSampler cannot be made then."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: False)  # as an earlier test may have left one
    assert list(PrunedSampler(Numbers(), shuffle=False)) == list(range(NUM_SAMPLES))
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert list(PrunedSampler(Numbers(), shuffle=False)) == [*range(1, NUM_SAMPLES, 3)]
    assert list(PrunedSampler(Numbers(), rank=2, shuffle=False)) == [*range(2, NUM_SAMPLES, 3), 0]


@pytest.mark.parametrize(
    ("rank", "world_size", "words"),
    [
        ("one", "3", "variable RANK is 'one', not a whole number .* unset it, or pass num_replicas and rank"),
        ("1", "", "variable WORLD_SIZE is ''"),
        ("-1", "3", "variable RANK is '-1'"),
        ("1.0", "3", r"variable RANK is '1\.0'"),
        ("3", "3", "Rank 3 of 3 ranks is none of 0 to 2"),
        ("0", "0", "Rank 0 of 0 ranks"),
        ("1", None, "Rank 1 of 1 ranks .* let the launcher set RANK and WORLD_SIZE"),
    ],
)
def test_a_launcher_that_says_nonsense(
    monkeypatch: pytest.MonkeyPatch, rank: str, world_size: str | None, words: str
) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: False)
    monkeypatch.setenv("RANK", rank)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if world_size is not None:
        monkeypatch.setenv("WORLD_SIZE", world_size)
    with pytest.raises(ValueError, match=words):
        PrunedSampler(Numbers())
    assert len(PrunedSampler(Numbers(), 1, 0)) == NUM_SAMPLES  # what is given is not looked up
