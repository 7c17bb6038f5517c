"""Pruning map-style datasets inside Composer's training loop."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from composer import Callback, State, Trainer
from composer.optim import CosineAnnealingScheduler
from small_run import make_ted
from streaming import MDSWriter
from torch.utils.data import BatchSampler, DataLoader, Dataset, DistributedSampler, TensorDataset
from two_ranks_map_style import NUM_SAMPLES, Seen, features, make_data, make_model, make_trainer, outcome

from ted_stream import DataPruning, PrunedStreamingDataset, SkipList, read_skip_list
from ted_stream.sampler import PrunedSampler

SCRIPT = Path(__file__).with_name("two_ranks_map_style.py")
EPOCHS = 5


class SameIds(Callback):
    """Compares the ids that scores go to with those that the batches' contents tell."""

    def __init__(self, ted: DataPruning) -> None:
        self.ted = ted
        self.seen = Seen()
        self.lengths: list[int] = []  # of the epochs, as the trainer was told

    def batch_start(self, state: State, logger: Any) -> None:
        self.seen.batch_start(state, logger)
        last = self.seen.epochs[state.timestamp.epoch.value][-1]
        assert self.ted.engine.step.ids.dtype == torch.int64
        assert self.ted.engine.step.ids.tolist() == last

    def epoch_end(self, state: State, logger: Any) -> None:
        assert state.dataloader_len is not None
        self.lengths.append(state.dataloader_len.value)

    def epochs(self) -> list[list[int]]:
        return [[index for batch in epoch for index in batch] for epoch in self.seen.epochs.values()]


@pytest.mark.long
@pytest.mark.parametrize(
    ("loader", "trainer"),
    [
        ({}, {"device_train_microbatch_size": 3}),
        ({"num_workers": 2, "persistent_workers": True}, {}),
        ({"num_workers": 1, "drop_last": True}, {}),
        ({}, {"eval_dataloader": DataLoader(make_data(), batch_size=50), "eval_interval": "2ba"}),
    ],
    ids=["microbatches", "workers", "drop_last", "evaluation on the same dataset"],
)
def test_scores_go_to_the_samples_of_the_batch(loader: dict[str, Any], trainer: dict[str, Any], tmp_path: Path) -> None:
    ted = make_ted(0.6, folder=str(tmp_path))
    same = SameIds(ted)
    built = make_trainer([ted], loader=loader, callbacks=[same], **trainer)
    built.fit()
    assert len(same.epochs()) == EPOCHS
    for record, seen in zip(ted.records, same.epochs(), strict=True):
        kept = read_skip_list(tmp_path / record.skip_list, digest=record.digest).kept_ids()
        whole = len(kept) // 16 * 16 if loader.get("drop_last") else len(kept)
        assert len(seen) == len(set(seen)) == record.forwarded == whole
        assert set(seen) <= set(kept.tolist())
        assert seen != sorted(seen)
    assert ted.records[2].kept < 0.6 * NUM_SAMPLES
    assert [len(batches) for batches in same.seen.epochs.values()] == same.lengths
    sampler: Any = built.state.dataloader.sampler  # pyright: ignore
    assert len(sampler) == NUM_SAMPLES  # whole again


def test_epochs_that_the_trainer_cuts_short(tmp_path: Path) -> None:
    ted = make_ted(0.6, folder=str(tmp_path))
    same = SameIds(ted)
    make_trainer([ted], callbacks=[same], train_subset_num_batches=4).fit()
    assert [len(epoch) for epoch in same.epochs()] == [min(4 * 16, record.kept) for record in ted.records]


def test_it_trains_as_on_a_streaming_dataset_in_the_same_order(tmp_path: Path) -> None:
    columns = {"x": "ndarray:float32:6", "labels": "int"}
    x, y = features()
    with MDSWriter(out=str(tmp_path / "mds"), columns=columns) as writer:
        for row, label in zip(x.numpy(), y.tolist(), strict=True):
            writer.write({"x": row, "labels": label})
    streaming = PrunedStreamingDataset(local=str(tmp_path / "mds"), shuffle=False, batch_size=16)
    runs = []
    for name, loader in {
        "stream": DataLoader(streaming, batch_size=16),
        "map": DataLoader(
            hugging_face := make_data("hugging face"),
            batch_size=16,
            sampler=PrunedSampler(hugging_face, shuffle=False),
        ),
    }.items():
        ted, model = make_ted(0.6, folder=str(tmp_path / name)), make_model("hugging face")
        trainer = Trainer(
            model=model,
            train_dataloader=loader,
            max_duration="5ep",
            optimizers=torch.optim.SGD(model.parameters(), 0.1),
            schedulers=CosineAnnealingScheduler(),
            algorithms=[ted],
            device="cpu",
            seed=1,
            progress_bar=False,
            auto_log_hparams=False,
        )
        trainer.fit()
        same = outcome(trainer, ted)
        del same["digests"]
        same["kept"] = [
            read_skip_list(tmp_path / name / record.skip_list).kept_ids().tolist() for record in ted.records
        ]
        runs.append(same)
    assert runs[0] == runs[1]


class Endless(Dataset):
    """2^25 + 9 samples that take no memory; notes which were read."""

    def __init__(self) -> None:
        self.read: list[int] = []

    def __len__(self) -> int:
        return 2**25 + 9

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        self.read.append(index)
        return torch.tensor([index >> 24, index >> 12 & 4095, index & 4095, 1, 1, 1]) / 4096, index % 3


@pytest.mark.long
def test_ids_stay_exact_where_floats_do_not(tmp_path: Path) -> None:
    data = Endless()
    # No sample has a score yet: those that are kept are chosen by a hash of their ids.
    ted = make_ted(1 - 40 / len(data), schedule="constant", annealing=0, folder=str(tmp_path))
    make_trainer([ted], data=data, max_duration="1ep").fit()
    kept = read_skip_list(tmp_path / ted.records[0].skip_list).kept_ids()
    assert len(kept) == 40
    assert (kept % 2)[kept > 2**24].sum() > 5  # float32 has no such numbers
    assert data.read[:16:15] == [0, len(data) - 1]  # how the collate function orders rows is tried on 16 samples
    assert sorted(data.read[16:]) == kept.tolist()
    assert np.array_equal(np.flatnonzero(~np.isnan(ted.engine.scores())), kept)


# Resuming -------------------------------------------------------------------------------------------------------


class Noisy(TensorDataset):
    """Draws from the process's random generator for every sample."""

    def __getitem__(self, index: int) -> Any:
        x, y = super().__getitem__(index)
        return x + 0.1 * torch.randn(6), y


@pytest.mark.long
@pytest.mark.parametrize("interval", ["1ba", "1ep"])
@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_changes_nothing(workers: int, interval: str, tmp_path: Path) -> None:
    """Dropout draws in the main process, and so does the dataset where there are no workers."""
    drop_last = workers > 0

    def run(load: Path | None = None, **arguments: Any) -> dict[str, Any]:
        ted = make_ted(0.6, relative=True, folder=str(tmp_path / "run"))
        trainer = make_trainer(
            [ted],
            data=make_data() if workers else Noisy(*features()),
            loader={"num_workers": workers, "persistent_workers": workers > 0, "drop_last": drop_last},
            sampler={"drop_last": drop_last, "seed": 3},
            schedulers=CosineAnnealingScheduler(),
            load_path=None if load is None else str(load),
            **arguments,
        )
        trainer.fit()
        trainer.close()
        return outcome(trainer, ted)

    checkpoints = tmp_path / "checkpoints"
    whole = run(save_folder=str(checkpoints), save_interval=interval)
    found = {int(path.name.split("-")[1][2:]): path for path in checkpoints.glob("ep*-rank0.pt")}
    batches = sorted(found)
    assert len(batches) == (EPOCHS if interval == "1ep" else batches[-1])
    # In epoch 0: in its middle, and after its last batch, when nothing of it is left to read.
    last = NUM_SAMPLES // 16 + (not drop_last)
    for batch in batches[:-1] if interval == "1ep" else [3, last, *batches[last + 2 :: 7]]:
        assert run(found[batch]) == whole, found[batch].name


@pytest.fixture
def stopped(tmp_path: Path) -> str:
    """A checkpoint in the middle of epoch 1, after 2 of its batches."""
    folder = tmp_path / "checkpoints"
    ted = make_ted(0.6, folder=str(tmp_path / "run"))
    make_trainer([ted], max_duration="2ep", save_folder=str(folder), save_interval="11ba").fit()
    return str(folder / "ep1-ba11-rank0.pt")


def test_ids_are_right_where_the_trainer_does_not_pass_over_what_it_trained_on(stopped: str, tmp_path: Path) -> None:
    """Without spinning, Composer starts the epoch again from its first batch."""
    ted = make_ted(0.6, folder=str(tmp_path / "run"))
    same = SameIds(ted)
    trainer = make_trainer([ted], callbacks=[same], load_path=stopped, spin_dataloaders=False)
    trainer.fit()
    assert len(same.epochs()[0]) == ted.records[1].kept


@pytest.mark.parametrize(
    ("loader", "sampler", "words"),
    [
        ({}, {"seed": 1}, r"seed \(0 and 1\)"),
        ({}, {"shuffle": False}, r"shuffle \(True and False\)"),
        ({"batch_size": 8}, {}, r"global batch size \(16 and 8\)"),
    ],
)
def test_an_epoch_is_not_gone_on_with_in_another_order(
    loader: dict[str, Any], sampler: dict[str, Any], words: str, stopped: str, tmp_path: Path
) -> None:
    ted = make_ted(0.6, folder=str(tmp_path / "run"))
    trainer = make_trainer([ted], loader=loader, sampler=sampler, load_path=stopped)
    with pytest.raises(ValueError, match=rf"middle of epoch 1.*{words}"):
        trainer.fit()


def test_scores_of_another_dataset_are_refused(stopped: str, tmp_path: Path) -> None:
    data = TensorDataset(*features(NUM_SAMPLES + 1))
    trainer = make_trainer([make_ted(0.6, folder=str(tmp_path / "run"))], data=data, load_path=stopped)
    with pytest.raises(ValueError, match="Give the dataset of the run"):
        trainer.fit()


# Two ranks ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory, launch: Callable[..., None]) -> Path:
    out = tmp_path_factory.mktemp("two_ranks_map_style")
    launch(SCRIPT, out, ranks=2)
    return out


def results(out: Path) -> list[dict[str, Any]]:
    return [json.loads((out / f"rank{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.long
@pytest.mark.parametrize(
    ("run", "folder"),
    [
        ("tensors", "tensorsFalse"),
        ("drop_last", "tensorsTrue"),
        ("subset", "subsetFalse"),
        ("hugging face", "hugging faceTrue"),
    ],
)
def test_two_ranks_share_out_every_epoch(run: str, folder: str, two_ranks: Path) -> None:
    first, second = (rank[run] for rank in results(two_ranks))
    for name in ("digests", "forwarded", "weights", "scores"):
        assert first[name] == second[name]
    odd = 0
    for epoch, digest in enumerate(first["digests"]):
        skip_list = read_skip_list(two_ranks / folder / "skip_lists" / f"ep{epoch:04d}.parquet", digest=digest)
        batches = [rank["seen"][str(epoch)] for rank in (first, second)]
        assert [len(batch) for batch in batches[0]] == [len(batch) for batch in batches[1]]
        kept = set(skip_list.kept_ids().tolist())
        counts = Counter(index for rank in batches for batch in rank for index in batch)
        odd += len(kept) % 2
        assert counts.total() == first["forwarded"][epoch]
        if folder.endswith("True"):
            assert set(counts) <= kept
            assert counts.total() == len(counts) == len(kept) - len(kept) % 2
        else:
            assert set(counts) == kept
            assert counts.total() == len(kept) + len(kept) % 2
    assert odd  # so that a sample was repeated or left out
    assert len(first["digests"]) == EPOCHS


@pytest.mark.long
def test_two_ranks_resume_in_the_middle_of_an_epoch(two_ranks: Path) -> None:
    for rank in results(two_ranks):
        for name in ("digests", "forwarded", "weights", "scores"):
            assert rank["resumed"][name] == rank["tensors"][name]
        left = len(rank["tensors"]["seen"]["2"]) - len(rank["resumed"]["seen"]["2"])
        assert left == 16 - sum(len(rank["tensors"]["seen"][epoch]) for epoch in "01")


@pytest.mark.long
def test_one_rank_goes_on_where_two_stopped(two_ranks: Path) -> None:
    """At the same global batch size: what the two had left of the epoch, each sample once."""
    ted = make_ted(0.6, folder=str(two_ranks / "tensorsFalse"))
    same = SameIds(ted)
    load_path = str(two_ranks / "checkpoints" / "ep2-ba16-rank0.pt")
    make_trainer([ted], callbacks=[same], load_path=load_path, max_duration="3ep").fit()
    ranks = [rank["tensors"]["seen"]["2"] for rank in results(two_ranks)]
    kept = {index for batches in ranks for batch in batches for index in batch}
    trained = {index for batches in ranks for batch in batches[:2] for index in batch}
    assert len(trained) == 2 * 16
    assert sorted(same.epochs()[0]) == sorted(kept - trained)


@pytest.mark.long
def test_samplers_that_do_not_belong_together_are_refused_on_every_rank(two_ranks: Path) -> None:
    first, second = (rank["refusals"] for rank in results(two_ranks))
    assert first[0] == second[0]
    assert "ranks 0 and 1 differ in seed (0 and 1)" in first[0]
    assert "Rank 1 failed" in first[1]
    assert "that of rank 0 of 2, but this is rank 1 of 2" in second[1]


# Wrong use ------------------------------------------------------------------------------------------------------


def loaders() -> dict[str, tuple[Callable[[Any], DataLoader], str]]:
    def short(data: Any) -> DataLoader:
        return DataLoader(data, batch_size=16, sampler=PrunedSampler(torch.utils.data.Subset(data, range(100))))

    def fixed(data: Any) -> DataLoader:
        sampler = PrunedSampler(data)
        keep = np.arange(NUM_SAMPLES) < 50
        skip_list = SkipList.from_keep_mask(sampler.layout, keep, epoch=0, keep_ratio=0.4, method="test", run="test")
        return DataLoader(data, batch_size=16, sampler=PrunedSampler(data, skip_list=skip_list))

    plain = r"DataLoader over a TensorDataset.*sampler=PrunedSampler\(dataset\)"
    return {
        "no sampler": (lambda data: DataLoader(data, batch_size=16, shuffle=True), plain),
        "stock sampler": (lambda data: DataLoader(data, batch_size=16, sampler=DistributedSampler(data, 1, 0)), plain),
        "batch sampler": (
            lambda data: DataLoader(data, batch_sampler=BatchSampler(PrunedSampler(data), 16, False)),
            plain,
        ),
        "no batches": (
            lambda data: DataLoader(data, batch_size=None, sampler=PrunedSampler(data)),
            "batch_size=None.*Pass the DataLoader a batch_size",
        ),
        "out of order": (
            lambda data: DataLoader(data, batch_size=16, sampler=PrunedSampler(data), num_workers=1, in_order=False),
            "in_order=False",
        ),
        "other length": (short, "made for 100 samples.*has 131"),
        "other rank": (
            lambda data: DataLoader(data, batch_size=16, sampler=PrunedSampler(data, 4, 1)),
            "rank 1 of 4.*rank 0 of 1",
        ),
        "fixed list": (fixed, "fixed skip_list.*Drop skip_list= from the PrunedSampler"),
        "too few": (
            lambda data: DataLoader(data, batch_size=64, sampler=PrunedSampler(data), drop_last=True),
            r"Epoch 3 is to keep \d+ samples, but it takes 64",
        ),
    }


@pytest.mark.parametrize("case", loaders())
def test_loaders_that_cannot_be_pruned_are_refused(case: str, tmp_path: Path) -> None:
    make, words = loaders()[case]
    trainer = make_trainer([make_ted(0.6, folder=str(tmp_path))], train_dataloader=make(make_data()))
    with pytest.raises(ValueError, match=words):
        trainer.fit()
    assert trainer.state.timestamp.batch == 0


def test_sharing_the_sampler_with_an_evaluator_is_refused(tmp_path: Path) -> None:
    data = make_data()
    sampler = PrunedSampler(data)
    train, evaluation = (DataLoader(data, batch_size=16, sampler=sampler) for _ in range(2))
    trainer = make_trainer([make_ted(0.6, folder=str(tmp_path))], train_dataloader=train, eval_dataloader=evaluation)
    with pytest.raises(ValueError, match=r"shares the training data's PrunedSampler.*sampler of its own"):
        trainer.fit()


def test_batches_that_lost_rows_stop_the_run(tmp_path: Path) -> None:
    def collate(samples: list[Any]) -> Any:
        return torch.utils.data.default_collate([sample for sample in samples if sample[1]])

    trainer = make_trainer([make_ted(0.6, folder=str(tmp_path))], loader={"collate_fn": collate})
    with pytest.raises(ValueError, match=r"makes \d+ rows of 16 samples.*one row per sample"):
        trainer.fit()

    def collate_once(samples: list[Any]) -> Any:
        calls.append(len(samples))
        return torch.utils.data.default_collate(samples[len(calls) > 4 :])  # what is tried before the run is whole

    calls: list[int] = []
    trainer = make_trainer([make_ted(0.6, folder=str(tmp_path))], loader={"collate_fn": collate_once})
    with pytest.raises(ValueError, match=r"Batch 0 of the epoch has 15 rows.*planned 16.*one row per sample"):
        trainer.fit()


def test_a_fixed_list_without_an_algorithm(tmp_path: Path) -> None:
    ted = make_ted(0.6, annealing=0, folder=str(tmp_path))
    make_trainer([ted]).fit()
    path = tmp_path / ted.records[-1].skip_list
    seen = Seen()
    trainer = make_trainer([], sampler={"skip_list": str(path)}, callbacks=[seen], max_duration="2ep")
    trainer.fit()
    orders = [[index for batch in epoch for index in batch] for epoch in seen.epochs.values()]
    assert len(orders) == 2
    assert orders[0] != orders[1]
    for order in orders:
        assert sorted(order) == read_skip_list(path).kept_ids().tolist()
