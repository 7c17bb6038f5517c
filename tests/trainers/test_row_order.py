"""Rows that leave their sample ids, in the collate function or in batch_transforms, stop a run before its first batch.

Those that keep to them pass, whatever else is done to them.
"""

import threading
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from composer import Callback, DataSpec, State, Trainer
from small_run import BATCH_SIZE, TupleDataset, make_ted
from torch.utils.data import DataLoader, Dataset, TensorDataset, default_collate, get_worker_info

from ted_stream import DataPruning, PrunedSampler
from ted_stream.engine import Ranks, read_ids
from ted_stream.engine.row_order import batches_to_probe, follows_ids

NUM_SAMPLES = 61


@pytest.fixture(scope="module")
def folder(make_mds: Callable[..., str]) -> str:
    return make_mds(NUM_SAMPLES)


def map_data() -> TensorDataset:
    return TensorDataset(torch.randn(40, 6, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 3)


@pytest.fixture
def fit(folder: str, make_trainer: Callable[..., Trainer], tmp_path: Path) -> Callable[..., Trainer]:
    """A function that trains on streaming or map-style data with this collate function and these batch_transforms."""

    def run(
        *,
        kind: str = "map",
        data: Any = None,
        transform: Any = None,
        batch_size: int = BATCH_SIZE,
        callbacks: Sequence[Callback] = (),
        **loader: Any,
    ) -> Trainer:
        if kind == "map":
            data = data or map_data()
            built = DataLoader(data, batch_size=batch_size, sampler=PrunedSampler(data), **loader)
        else:
            data = data or TupleDataset(local=folder, shuffle=True, batch_size=batch_size)
            built = DataLoader(data, batch_size=batch_size, **loader)
        pruning = make_ted(0.5, folder=tmp_path)
        spec = DataSpec(built, batch_transforms=transform)
        trainer = make_trainer("", [pruning], callbacks=callbacks, dataset=data, dataloader=spec, max_duration="2ep")
        try:
            trainer.fit()
        finally:
            trained = trainer.state.timestamp.batch > 0
            assert trained == (len(pruning.records) > 0)
        return trainer

    return run


# The collate function


class Lengths(Dataset):
    """Sequences of which the first two are equally long."""

    def __init__(self, longer: Sequence[int] = range(2, 40, 3)) -> None:
        self.longer = set(longer)

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.tensor([1.0, index, index % 5, 0, 0, 1.0 + (index in self.longer)]), index % 3


def by_length(samples: list[Any]) -> Any:
    """Sorts by the last feature; a stable sort, as Python's is."""
    return default_collate(sorted(samples, key=lambda sample: float(sample[0][-1])))


@pytest.mark.parametrize("batch_size", [2, 3, 8, 40])
def test_a_sort_that_leaves_the_first_samples_in_place_is_refused(batch_size: int, fit: Callable[..., Trainer]) -> None:
    with pytest.raises(ValueError, match="another order than that of its samples"):
        fit(data=Lengths(), collate_fn=by_length, batch_size=batch_size)


def test_a_sort_of_samples_that_are_all_equal_is_let_through(fit: Callable[..., Trainer]) -> None:
    fit(data=Lengths([]), collate_fn=by_length)


def test_a_sort_of_streaming_rows_alone_is_refused(folder: str, fit: Callable[..., Trainer]) -> None:
    def collate(samples: list[Any]) -> Any:
        ids = torch.tensor([sample[-1] for sample in samples])
        # Those of the first two samples that a probe sees are equal.
        ordered = sorted(samples, key=lambda sample: sample[-1] in (3, 9))
        return [*default_collate(ordered)[:-1], ids]

    with pytest.raises(ValueError, match="another order than their sample ids"):
        fit(kind="stream", collate_fn=collate)


def test_probing_reads_one_shard_of_streaming_data(folder: str) -> None:
    dataset = TupleDataset(local=folder, batch_size=BATCH_SIZE)
    first = int(dataset.samples_per_shard[0])
    assert 16 < first < NUM_SAMPLES
    read_ids(DataLoader(dataset, batch_size=BATCH_SIZE), Ranks())
    assert len(dataset.read) == 16
    assert (min(dataset.read), max(dataset.read)) == (0, first - 1)
    assert len(set(dataset.read)) == 16


def test_a_collate_function_that_takes_samples_apart_is_let_through(
    make_trainer: Callable[..., Trainer], fit: Callable[..., Trainer]
) -> None:
    class Rows(Dataset):
        def __init__(self) -> None:
            self.rows = [{"x": x, "y": y} for x, y in map_data()]

        def __len__(self) -> int:
            return len(self.rows)

        def __getitem__(self, index: int) -> dict[str, Any]:
            return dict(self.rows[index])

    def collate(samples: list[dict[str, Any]]) -> Any:
        labels = [sample.pop("y") for sample in samples]
        return [torch.stack([sample.pop("x") for sample in samples]), torch.stack(labels)]

    fit(data=Rows(), collate_fn=collate)


# Samples that workers read


class Zipped(Dataset):
    """Samples in a zip, which is opened when the first of them is read, or by `open`."""

    def __init__(self, path: Path, *, lazily: bool = True) -> None:
        self.path, self.lazily = path, lazily
        self.zip: zipfile.ZipFile | None = None
        with zipfile.ZipFile(path, "w") as file:
            for index in range(64):
                file.writestr(str(index), np.full(2048, index, np.float32).tobytes())

    def open(self) -> None:
        self.zip = zipfile.ZipFile(self.path)

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if self.lazily and self.zip is None:
            self.open()
        assert self.zip is not None, "not opened"
        row = np.frombuffer(self.zip.read(str(index)), np.float32)
        assert (row == index).all(), f"sample {index} holds others' bytes"
        return torch.from_numpy(row[:6].copy()), index % 3


def open_dataset(worker: int) -> None:
    info: Any = get_worker_info()
    info.dataset.open()


class Contents(Callback):
    """Compares what the rows of a batch hold with the ids that they go by."""

    def __init__(self) -> None:
        self.batches = 0

    def batch_start(self, state: State, logger: Any) -> None:
        (pruning,) = [algorithm for algorithm in state.algorithms if isinstance(algorithm, DataPruning)]
        assert state.batch[0][:, 0].long().tolist() == pruning.engine.step.ids.tolist()
        self.batches += 1


@pytest.mark.long
@pytest.mark.parametrize("lazily", [True, False])
def test_samples_are_tried_in_a_worker_where_workers_read_them(
    lazily: bool, fit: Callable[..., Trainer], tmp_path: Path
) -> None:
    data = Zipped(tmp_path / "data.zip", lazily=lazily)
    contents = Contents()
    init = None if lazily else open_dataset
    fit(data=data, num_workers=2, worker_init_fn=init, multiprocessing_context="fork", callbacks=[contents])
    assert data.zip is None
    assert contents.batches > 64 // BATCH_SIZE  # more than an epoch of them


@pytest.mark.long
def test_samples_are_tried_in_a_spawned_worker(tmp_path: Path) -> None:
    data = Zipped(tmp_path / "data.zip", lazily=False)
    workers: dict[str, Any] = {"num_workers": 2, "worker_init_fn": open_dataset, "multiprocessing_context": "spawn"}
    state = torch.get_rng_state()
    read_ids(DataLoader(data, batch_size=BATCH_SIZE, sampler=PrunedSampler(data), **workers), Ranks())
    assert data.zip is None
    assert torch.equal(torch.get_rng_state(), state)


def test_rows_that_a_collate_function_moves_are_seen_through_a_worker(fit: Callable[..., Trainer]) -> None:
    with pytest.raises(ValueError, match="another order than that of its samples"):
        fit(data=Lengths(), collate_fn=by_length, num_workers=1)


class Locked(TensorDataset):
    """Samples that hold what no process can send."""

    def __getitem__(self, index: int) -> Any:
        return (*super().__getitem__(index), threading.Lock())


def without_lock(samples: list[Any]) -> Any:
    return default_collate([sample[:-1] for sample in samples])


def test_samples_that_no_worker_can_send_go_untried_with_a_warning(fit: Callable[..., Trainer]) -> None:
    data = Locked(*map_data().tensors)
    with pytest.warns(UserWarning, match=r"Samples of Locked cannot be sent.*cannot pickle.*not tried"):
        fit(data=data, collate_fn=without_lock, num_workers=1)


# batch_transforms


def permuted(batch: Any) -> Any:
    order = torch.randperm(len(batch[0]))
    return [column[order] for column in batch]


def in_order_of_x(batch: Any) -> Any:
    order = batch[0][:, 0].argsort()
    return [column[order] for column in batch]


def without_ids(change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda batch: [*change(batch[:-1]), batch[-1]]


def flipped(batch: Any) -> Any:
    return [column.flip(0) for column in batch]


def rolled(batch: Any) -> Any:
    return [column.roll(1, 0) for column in batch]


@pytest.mark.parametrize("change", [permuted, in_order_of_x, flipped, rolled])
def test_a_transform_that_reorders_rows_is_refused(change: Any, fit: Callable[..., Trainer]) -> None:
    with pytest.raises(ValueError, match=r"batch transform, puts rows into another order than that of its samples"):
        fit(transform=change)
    with pytest.raises(ValueError, match=r"batch transform, puts rows into another order than their sample ids"):
        fit(kind="stream", transform=without_ids(change))


@pytest.mark.parametrize("change", [permuted, in_order_of_x, flipped])
def test_a_transform_that_reorders_ids_as_well_is_let_through(change: Any, fit: Callable[..., Trainer]) -> None:
    fit(kind="stream", transform=change)


def noisy(batch: Any) -> Any:
    return [batch[0] + torch.randn_like(batch[0]), *batch[1:]]


def normalised(batch: Any) -> Any:
    x = batch[0].double()
    return [((x - x.mean(0)) / x.std(0)).float(), *batch[1:]]


def mixed(batch: Any) -> Any:
    order, share = torch.randperm(len(batch[0])), torch.rand(())
    return [share * batch[0] + (1 - share) * batch[0][order], *batch[1:]]


def cropped(batch: Any) -> Any:
    """One draw for all rows."""
    return [batch[0].roll(int(torch.randint(6, ())), 1), *batch[1:]]


def in_half(batch: Any) -> Any:
    return [batch[0].half().float(), *batch[1:]]


@pytest.mark.parametrize("kind", ["map", "stream"])
@pytest.mark.parametrize("change", [noisy, normalised, mixed, cropped, in_half])
def test_a_transform_that_keeps_rows_in_order_is_let_through(
    change: Any, kind: str, fit: Callable[..., Trainer]
) -> None:
    fit(kind=kind, transform=change)


@pytest.mark.parametrize("change", [permuted, flipped])
@pytest.mark.parametrize("augment", [noisy, cropped])
def test_labels_tell_where_inputs_are_augmented(change: Any, augment: Any, fit: Callable[..., Trainer]) -> None:
    with pytest.raises(ValueError, match="another order than that of its samples"):
        fit(transform=lambda batch: change(augment(batch)))


def test_the_transforms_of_the_loader_that_a_fit_is_given_are_tried(
    make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    def spec(transform: Any) -> DataSpec:
        data = map_data()
        return DataSpec(
            DataLoader(data, batch_size=BATCH_SIZE, sampler=PrunedSampler(data)), batch_transforms=transform
        )

    trainer = make_trainer("", [make_ted(0.5, folder=tmp_path)], dataset=map_data(), dataloader=spec(permuted))
    trainer.fit(train_dataloader=spec(noisy), duration="2ep")
    with pytest.raises(ValueError, match="another order than that of its samples"):
        trainer.fit(train_dataloader=spec(permuted), duration="2ep")


def test_trying_the_transforms_leaves_the_generators_as_they_were(folder: str) -> None:
    data = map_data()
    mapped = DataLoader(data, batch_size=BATCH_SIZE, sampler=PrunedSampler(data))
    streamed = DataLoader(TupleDataset(local=folder, batch_size=BATCH_SIZE), batch_size=BATCH_SIZE)
    state = torch.get_rng_state()
    read_ids(mapped, Ranks(), noisy)
    read_ids(streamed, Ranks(), without_ids(noisy))
    assert torch.equal(torch.get_rng_state(), state)


# Lost rows and lost ids

LOSSES: dict[str, Callable[[Any], Any]] = {
    "the ids": lambda batch: batch[:-1],
    "all but the inputs": lambda batch: batch[0],
    "all": lambda batch: [],
    "the batch": lambda batch: None,
    "names": lambda batch: {"x": batch[0], "labels": batch[1]},
    "a row": lambda batch: [column[:-1] for column in batch],
    "a row but not its id": lambda batch: [*(column[:-1] for column in batch[:-1]), batch[-1]],
}


@pytest.mark.parametrize("place", ["collate_fn", "transform"])
@pytest.mark.parametrize("loss", LOSSES)
def test_ids_that_are_lost_are_missed_before_the_first_batch(
    loss: str, place: str, fit: Callable[..., Trainer]
) -> None:
    lose = LOSSES[loss]
    change = {"transform": lose} if place == "transform" else {"collate_fn": lambda rows: lose(default_collate(rows))}
    with pytest.raises(ValueError, match=r"collate.*batch transform"):
        fit(kind="stream", **change)


@pytest.mark.parametrize("place", ["collate_fn", "transform"])
@pytest.mark.parametrize("loss", ["all", "the batch", "a row"])
def test_rows_that_are_lost_are_missed_before_the_first_batch(
    loss: str, place: str, fit: Callable[..., Trainer]
) -> None:
    lose = LOSSES[loss]
    change = {"transform": lose} if place == "transform" else {"collate_fn": lambda rows: lose(default_collate(rows))}
    with pytest.raises(ValueError, match=r"makes 7 rows of 8 samples|holds no tensor"):
        fit(**change)


def test_single_numbers_in_front_are_no_rows(make_trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    from composer.models import ComposerModel

    class Tempered(ComposerModel):
        def __init__(self) -> None:
            super().__init__()
            self.net = torch.nn.Linear(6, 3)

        def forward(self, batch: Any) -> Any:
            return batch[0] * self.net(batch[1])

        def loss(self, outputs: Any, batch: Any) -> Any:
            return torch.nn.functional.cross_entropy(outputs, batch[2])

    data = map_data()
    spec = DataSpec(
        DataLoader(data, batch_size=BATCH_SIZE, sampler=PrunedSampler(data)),
        batch_transforms=lambda batch: [torch.tensor(2.0), *batch],
        get_num_samples_in_batch=lambda batch: len(batch[1]),
        split_batch=lambda batch, size: [batch],
    )
    pruning = make_ted(0.5, folder=tmp_path, importance="loss", loss_correction=False)
    make_trainer("", [pruning], model=Tempered(), dataset=data, dataloader=spec, max_duration="2ep").fit()
    assert [record.forwarded for record in pruning.records] == [record.kept for record in pruning.records]


# What rows tell


def seen(make: Callable[[torch.Tensor], list[torch.Tensor]], count: int) -> bool:
    """Whether columns made of the samples' own numbers follow their ids."""
    ids = list(range(count))
    return follows_ids(
        ids, lambda pairs: (make(torch.tensor([at for at, _ in pairs])), [sample_id for _, sample_id in pairs])
    )


def test_what_shows_that_rows_moved() -> None:
    labels = torch.tensor([0, 0, 1, 0, 0, 0, 0, 0])  # one of a kind
    for count in range(3, 9):
        assert not seen(lambda x: [x.flip(0)], count)
        assert not seen(lambda x: [x.sort().values, labels[x.sort().values]], count)
        assert not seen(lambda x: [torch.ones_like(x), x.roll(1), labels[x].roll(1)], count)
    assert not seen(lambda x: [torch.arange(8), labels[x].sort().values], 8)
    assert not seen(lambda x: [x.flip(0).float() / torch.zeros(())], 8)  # NaN and infinities are what they are


def mixed_with_partners(x: torch.Tensor) -> list[torch.Tensor]:
    """Inputs without labels, what they were mixed with, and where that stands."""
    order = torch.randperm(len(x))
    return [0.3 * x + 0.7 * x[order], order]


def test_what_shows_nothing() -> None:
    labels = torch.tensor([0, 1, 1, 0, 0, 1, 1, 0])
    for count in range(1, 9):
        assert seen(lambda x: [torch.arange(len(x))], count)
        assert seen(lambda x: [torch.randperm(len(x)), torch.zeros(len(x), 0)], count)
        assert seen(lambda x: [torch.arange(len(x)).flip(0), labels[x], torch.tensor(3)], count)
        assert seen(lambda x: [torch.arange(len(x)), x + torch.rand(len(x))], count)
        assert seen(lambda x: [labels[x].flip(0)[:-1]], count)
        assert seen(lambda x: [x.roll(1), x], count)  # negatives of their neighbours
        assert seen(mixed_with_partners, count)


def test_batches_to_probe_are_none_larger_than_those_of_training() -> None:
    assert [len(ids) for ids in batches_to_probe(16, 5)] == [5, 5, 5, 1]
    assert [len(ids) for ids in batches_to_probe(16, 256)] == [16]
    assert [list(ids) for ids in batches_to_probe(3, None)] == [[0, 1, 2]]
    assert np.unique(np.concatenate([list(ids) for ids in batches_to_probe(16, 3)])).tolist() == list(range(16))
