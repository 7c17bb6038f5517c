"""What is drawn for a sample hangs on the seed, the epoch and its id alone, and touches nothing else."""

import itertools
import pickle
import random
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import streaming.base.util
import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset

from ted_stream import PrunedSampler, PrunedStreamingDataset, SeededSamples
from ted_stream.engine import Ranks, read_ids
from ted_stream.reading import sources
from ted_stream.seeding import SeededIndex
from ted_stream.stores import base

NUM_SAMPLES, BATCH_SIZE = 61, 4
WORKERS = (0, 1, 4)
Drawn = dict[int, tuple[float, ...]]  # by sample id


def draw() -> tuple[float, ...]:
    """Of every global generator; normal variates, of which torch and NumPy make two and keep one."""
    return torch.randn(()).item(), torch.rand(()).item(), np.random.standard_normal(), random.gauss(0, 1)


def states() -> tuple[Any, ...]:
    name, keys, *others = np.random.get_state(legacy=True)
    return random.getstate(), (name, np.asarray(keys).tolist(), *others), torch.get_rng_state().tolist()


class Drawing(Dataset):
    """(id, what was drawn) in memory; sample ``fails`` draws and fails."""

    def __init__(self, fails: int | None = None) -> None:
        self.fails = fails

    def __len__(self) -> int:
        return NUM_SAMPLES

    def __getitem__(self, index: int) -> tuple[int, tuple[float, ...]]:
        assert type(index) is int
        drawn = draw()
        if index == self.fails:
            raise KeyError("of the sample")
        return index, drawn


class Streamed(PrunedStreamingDataset):
    """The same from shards."""

    fails: int | None = None

    def __getitem__(self, at: Any) -> Any:
        drawn = draw()
        sample = super().__getitem__(at)
        if sample["id"] == self.fails:
            raise KeyError("of the sample")
        return sample["id"], drawn


def by_id(batches: Iterable[Any]) -> Drawn:
    found: Drawn = {}
    for index, drawn in itertools.chain.from_iterable(batches):
        assert found.setdefault(index, drawn) == drawn  # repeats of padding are alike
    return found


def map_loader(data: Any, workers: int = 0, seed: int = 0, **sampler: Any) -> DataLoader[Any]:
    return DataLoader(
        data,
        batch_size=BATCH_SIZE,
        collate_fn=list,
        sampler=PrunedSampler(data, seed=seed, **sampler),
        num_workers=workers,
        persistent_workers=workers > 0,
    )


def map_epochs(loader: DataLoader[Any], *epochs: int, skip: int = 0) -> list[Drawn]:
    sampler, found = loader.sampler, []
    assert isinstance(sampler, PrunedSampler)
    for epoch in epochs:
        sampler.set_epoch(epoch)
        sampler.skip(skip)
        found.append(by_id(loader))
    return found


def stream_loader(dataset: Any, workers: int) -> DataLoader[Any]:
    return DataLoader(
        dataset, batch_size=BATCH_SIZE, collate_fn=list, num_workers=workers, persistent_workers=workers > 0
    )


@pytest.fixture(scope="module")
def folder(make_mds: Callable[..., str]) -> str:
    return make_mds(NUM_SAMPLES)


@pytest.fixture(scope="module")
def undisturbed(folder: str) -> dict[str, list[Drawn]]:
    """Three epochs in one process."""
    streamed = Streamed(local=folder, batch_size=BATCH_SIZE, shuffle=True, seed_samples=True)
    return {
        "map-style": map_epochs(map_loader(SeededSamples(Drawing())), 0, 1, 2),
        "streaming": [by_id(stream_loader(streamed, 0)) for _ in range(3)],
    }


@pytest.mark.parametrize("kind", ["map-style", "streaming"])
def test_every_sample_epoch_and_generator_draws_its_own(kind: str, undisturbed: dict[str, list[Drawn]]) -> None:
    drawn = [values for epoch in undisturbed[kind] for values in epoch.values()]
    assert len(drawn) == 3 * NUM_SAMPLES
    assert len(set(itertools.chain(*drawn))) == 4 * len(drawn)
    normal = np.array(drawn)[:, [0, 2, 3]]
    assert np.abs(normal.mean(0)).max() < 0.3
    assert np.abs(normal.std(0) - 1).max() < 0.2
    assert np.abs(np.corrcoef(normal.T) - np.eye(3)).max() < 0.25


@pytest.mark.quick("0", "1")
@pytest.mark.parametrize("workers", WORKERS)
def test_map_style_samples_are_the_same_in_any_worker_and_rank(
    workers: int, undisturbed: dict[str, list[Drawn]]
) -> None:
    expected = undisturbed["map-style"]
    torch.manual_seed(workers)
    assert map_epochs(map_loader(SeededSamples(Drawing()), workers), 0, 1, 2) == expected
    seen: Drawn = {}
    for rank in range(3):
        loader = map_loader(SeededSamples(Drawing()), workers, num_replicas=3, rank=rank)
        (found,) = map_epochs(loader, 2)
        assert found.items() <= expected[2].items()
        seen |= found
    assert seen == expected[2]
    assert map_epochs(map_loader(SeededSamples(Drawing()), workers, seed=1), 0)[0] != expected[0]


@pytest.mark.parametrize("workers", WORKERS)
def test_map_style_samples_are_the_same_from_the_middle_of_an_epoch(
    workers: int, undisturbed: dict[str, list[Drawn]]
) -> None:
    (found,) = map_epochs(map_loader(SeededSamples(Drawing()), workers), 1, skip=20)
    assert len(found) == NUM_SAMPLES - 20
    assert found.items() <= undisturbed["map-style"][1].items()


@pytest.mark.quick("0-0", "1-0")
@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("resumed_with", WORKERS)
def test_streamed_samples_are_the_same_from_the_middle_of_an_epoch(
    workers: int, resumed_with: int, folder: str, undisturbed: dict[str, list[Drawn]]
) -> None:
    dataset = Streamed(local=folder, batch_size=BATCH_SIZE, shuffle=True, seed_samples=True)
    torch.manual_seed(workers)
    loader = stream_loader(dataset, workers)
    assert by_id(loader) == undisturbed["streaming"][0]
    iterator = iter(loader)  # and dies after five batches of the next epoch
    seen = by_id(next(iterator) for _ in range(5))
    state = dataset.state_dict(5 * BATCH_SIZE, True)

    resumed = Streamed(local=folder, batch_size=BATCH_SIZE, shuffle=True, shuffle_seed=1, seed_samples=True)
    resumed.load_state_dict(state)  # its seed too
    loader = stream_loader(resumed, resumed_with)
    rest = by_id(loader)
    assert len(seen) == 5 * BATCH_SIZE
    if workers == resumed_with:  # streaming deals an epoch out to its workers
        assert not seen.keys() & rest.keys()
    assert {**seen, **rest} == undisturbed["streaming"][1]
    assert rest.items() <= undisturbed["streaming"][1].items()
    assert seen.items() <= undisturbed["streaming"][1].items()
    assert by_id(loader) == undisturbed["streaming"][2]


@pytest.mark.parametrize("fails", [None, 7])
@pytest.mark.parametrize("kind", ["map-style", "streaming"])
def test_what_the_main_process_draws_is_left_alone(kind: str, fails: int | None, folder: str) -> None:
    if kind == "streaming":
        dataset = Streamed(local=folder, batch_size=BATCH_SIZE, shuffle=True, seed_samples=True)
        dataset.fails = fails
        loader = stream_loader(dataset, 0)
    else:
        loader = map_loader(SeededSamples(Drawing(fails)))
    iterator = iter(loader)  # draws a seed
    draw()  # and keeps a normal variate of torch's, NumPy's and Python's for the next
    before = states()
    if fails is None:
        batches = 0
        for _ in iterator:
            assert states() == before
            batches += 1
        assert batches == -(-NUM_SAMPLES // BATCH_SIZE)
    else:
        with pytest.raises(KeyError, match="of the sample"):
            list(iterator)
    assert states() == before


@pytest.mark.parametrize("kind", ["map-style", "streaming"])
def test_without_seeding_samples_draw_from_the_process(kind: str, folder: str) -> None:
    streamed = Streamed(local=folder, batch_size=BATCH_SIZE, shuffle=True)
    loader = stream_loader(streamed, 0) if kind == "streaming" else map_loader(Drawing())
    iterator = iter(loader)
    before = states()
    list(iterator)
    assert states() != before


@pytest.mark.parametrize("kind", ["map-style", "streaming"])
def test_a_look_at_a_sample_is_in_no_epoch(kind: str, folder: str) -> None:
    streamed = Streamed(local=folder, batch_size=BATCH_SIZE, seed_samples=True)
    data: Any = streamed if kind == "streaming" else SeededSamples(Drawing())
    torch.manual_seed(0)
    first = data[3]
    torch.manual_seed(0)
    assert first[0] == data[3][0] == 3
    assert first != data[3]


class Seeds(Drawing):
    def __getitem__(self, index: int) -> Any:
        return index, np.random.default_rng(torch.initial_seed()).random()


def test_generators_of_ones_own_can_be_seeded_alike() -> None:
    (alone,) = map_epochs(map_loader(SeededSamples(Seeds())), 0)
    assert len(set(alone.values())) == NUM_SAMPLES
    assert map_epochs(map_loader(SeededSamples(Seeds()), 2), 0) == [alone]


def _draw_in_collate(samples: list[Any]) -> tuple[list[int], tuple[float, ...]]:
    return [index for index, _ in samples], draw()


@pytest.mark.parametrize("workers", [1, 2])
def test_what_a_workers_collate_function_draws_follows_from_the_batch(workers: int) -> None:
    found = []
    for seed in range(2):
        loader = map_loader(SeededSamples(Drawing()), workers)
        loader.collate_fn = _draw_in_collate
        torch.manual_seed(seed)
        found.append(list(loader))
    assert found[0] == found[1]
    assert len({drawn for _, drawn in found[0]}) == len(found[0])


def test_indices_are_those_of_the_sampler() -> None:
    data = SeededSamples(Drawing())
    sampler = PrunedSampler(data, seed=5)
    sampler.set_epoch(3)
    indices = list(sampler)
    plain = PrunedSampler(Drawing(), seed=5)
    plain.set_epoch(3)
    assert indices == list(plain)
    for index in (indices[0], pickle.loads(pickle.dumps(indices[0]))):
        assert isinstance(index, SeededIndex)
        assert (index, index.seed, index.epoch) == (indices[0], 5, 3)


def test_a_sampler_of_another_dataset_is_refused() -> None:
    data = SeededSamples(Drawing())
    for own, read in ((data, data.dataset), (data.dataset, data)):
        sampler = PrunedSampler(own)
        loader = DataLoader(read, batch_size=4, sampler=sampler)
        with pytest.raises(ValueError, match=r"would not be seeded. Make data = SeededSamples\(dataset\) once"):
            sampler.check_loader(loader, rank=0, world_size=1)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("kind", ["shuffled", "in order", "a subset"])
def test_a_sampler_that_tells_no_epoch_is_refused(workers: int, kind: str) -> None:
    data = SeededSamples(Drawing())
    read = Subset(data, range(4, 12)) if kind == "a subset" else data
    loader = DataLoader(read, batch_size=4, shuffle=kind == "shuffled", num_workers=workers, collate_fn=list)
    with pytest.raises(ValueError, match=r"without a seed and an epoch.*sampler=PrunedSampler\(data\)"):
        next(iter(loader))


@pytest.mark.parametrize("workers", [0, 1])
def test_samples_that_are_tried_before_a_run_are_seeded(workers: int) -> None:
    loader = map_loader(SeededSamples(Drawing()), workers)
    tried: list[Any] = []

    def keep(batch: Any) -> Any:
        tried.append(batch)
        return torch.tensor([index for index, _ in batch])

    read_ids(loader, Ranks(), keep)
    (expected,) = map_epochs(loader, 0)
    assert by_id(tried).items() <= expected.items()


def test_streaming_data_is_refused(folder: str) -> None:
    for dataset in (PrunedStreamingDataset(local=folder, batch_size=4), iter([1])):
        with pytest.raises(ValueError, match=r"not a map-style dataset.*pass PrunedStreamingDataset seed_samples=True"):
            SeededSamples(dataset)


def test_pauses_before_another_attempt_take_nothing_from_the_global_generators(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(base, "_FIRST_PAUSE", 0.0)
    answers = iter([sources.TransientError("busy"), sources.TransientError("busy"), b"1234"])

    class Busy(sources.LocalSource):
        def read(self, name: str, begin: int, end: int, *, size: int) -> bytes:
            answer = next(answers)
            if isinstance(answer, bytes):
                return answer
            raise answer

    @streaming.base.util.retry(StopIteration, num_attempts=3, initial_backoff=0, max_jitter=0)
    def download() -> bytes:  # as streaming retries
        return next(attempts)()

    def fail() -> bytes:
        raise StopIteration

    attempts = iter([fail, fail, lambda: b"5678"])
    before = states()
    assert sources.read_patiently(Busy(), "shard", 0, 4, size=4, attempts=5) == b"1234"
    assert download() == b"5678"
    assert states() == before


class Around(Dataset):
    """Any dataset around another."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, index: int) -> Any:
        return self.inner[index]


@pytest.mark.parametrize(
    "around",
    [
        lambda data: Subset(data, range(9)),
        lambda data: ConcatDataset([Drawing(), data]),
        lambda data: Around(Subset(Around(data), range(9))),
    ],
    ids=["subset", "concatenated", "several"],
)
def test_what_is_around_seeded_samples_is_refused(around: Callable[[Any], Any]) -> None:
    told = r"SeededSamples within the \w+, .*would not be seeded. .*data = SeededSamples\(\w+\(…\)\)"
    nested = around(SeededSamples(Drawing()))
    with pytest.raises(ValueError, match=told):
        PrunedSampler(nested)
    with pytest.raises(ValueError, match=told):
        PrunedSampler(range(len(nested))).check_loader(DataLoader(nested, batch_size=4), rank=0, world_size=1)
    for whole in (SeededSamples(around(Drawing())), SeededSamples(nested), around(Drawing())):
        PrunedSampler(whole).check_loader(DataLoader(whole, batch_size=4), rank=0, world_size=1)
