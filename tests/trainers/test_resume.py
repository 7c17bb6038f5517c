"""A run that is cut off and goes on ends as the run that was not."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from composer import Callback, State, Trainer
from composer.optim import CosineAnnealingScheduler
from small_run import BATCH_SIZE, TupleDataset, make_ted
from streaming import Stream
from torch.utils.data import DataLoader, TensorDataset

from ted_stream import DataPruning, PrunedSampler, SkipListError
from ted_stream.pruning import SingleProcess, TorchDistributed

NUM_SAMPLES = 131
EPOCHS = 6


@pytest.fixture
def run(make_mds: Callable[..., str], make_trainer: Callable[..., Trainer], tmp_path: Path) -> Callable[..., Any]:
    data = make_mds(NUM_SAMPLES)

    def run(interval: str = "1ba", load: Path | None = None) -> Any:
        ted = make_ted(0.6, relative=True, folder=str(tmp_path))
        trainer = make_trainer(
            data,
            [ted],
            max_duration=f"{EPOCHS}ep",
            schedulers=CosineAnnealingScheduler(),
            save_folder=None if load else str(tmp_path / "checkpoints"),
            save_interval=interval,
            load_path=None if load is None else str(load),
            run_name="run",
        )
        trainer.fit()
        trainer.close()
        weights = torch.cat([parameter.detach().flatten() for parameter in trainer.state.model.parameters()])
        records = [(record.digest, record.forwarded, record.returning) for record in ted.records]
        return records, weights, ted.engine.scores()

    return run


@pytest.mark.long
@pytest.mark.parametrize("interval", ["1ba", "1ep"])
def test_resuming_from_any_checkpoint_changes_nothing(interval: str, run: Callable[..., Any], tmp_path: Path) -> None:
    records, weights, scores = run(interval)
    found = {path.name.removesuffix("-rank0.pt"): path for path in (tmp_path / "checkpoints").glob("ep*-rank0.pt")}
    names = sorted(found, key=lambda name: int(name.split("-ba")[1]))
    assert len(names) == (EPOCHS if interval == "1ep" else records_to_batches(records))
    # Epoch 0 has 17 batches: resume after its last one as well, when nothing of the epoch is left to read.
    chosen = names[:-1] if interval == "1ep" else ["ep0-ba17", *names[3::11]]
    for name in chosen:
        resumed_records, resumed_weights, resumed_scores = run(load=found[name])
        assert resumed_records == records, name
        assert torch.equal(resumed_weights, weights), name
        assert np.array_equal(resumed_scores, scores), name


def records_to_batches(records: list[tuple[str, int, int]]) -> int:
    return sum(-(-forwarded // BATCH_SIZE) for _, forwarded, _ in records)


@pytest.mark.long
def test_resuming_without_a_run_name_finds_the_run_folder(
    make_mds: Callable[..., str], make_trainer: Callable[..., Trainer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Composer gives every Trainer a name of its own, so the default folder would be another one."""
    monkeypatch.chdir(tmp_path)
    data = make_mds(NUM_SAMPLES)
    first, second = make_ted(0.6), make_ted(0.6)
    make_trainer(data, [first], save_folder="checkpoints", save_interval="5ba").fit()
    make_trainer(data, [second], load_path="checkpoints/ep1-ba20-rank0.pt").fit()
    assert [record.digest for record in second.records] == [record.digest for record in first.records]
    assert len(list((tmp_path / "ted_stream_runs").iterdir())) == 1


@pytest.mark.long
@pytest.mark.parametrize("spins", [True, False])
def test_random_reads_after_a_resume_are_those_of_composer_alone(
    spins: bool, make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    """Where Composer passes over batches, or not, it sees to the generators itself."""
    x = torch.randn(NUM_SAMPLES, 6, generator=torch.Generator().manual_seed(0))

    class Noisy(TensorDataset):
        def __getitem__(self, index: int) -> Any:
            x, y = super().__getitem__(index)
            return x + 0.1 * torch.randn(6), y

    class FirstEpoch(Callback):
        def __init__(self) -> None:
            self.inputs: list[torch.Tensor] = []

        def batch_start(self, state: State, logger: Any) -> None:
            if state.timestamp.epoch == 0:
                self.inputs.append(state.batch[0].clone())

    def inputs(pruned: bool, **arguments: Any) -> list[torch.Tensor]:
        data, seen = Noisy(x, torch.arange(NUM_SAMPLES) % 3), FirstEpoch()
        loader = DataLoader(data, batch_size=BATCH_SIZE, sampler=PrunedSampler(data, seed=3))
        algorithms = [make_ted(0.6, folder=tmp_path / "run")] if pruned else []
        settings: dict[str, Any] = {"dataset": data, "dataloader": loader, "callbacks": [seen], "max_duration": "2ep"}
        make_trainer("", algorithms, **settings, **arguments).fit()
        return seen.inputs

    inputs(True, save_folder=str(tmp_path / "checkpoints"), save_interval="4ba")
    resume = {"load_path": str(tmp_path / "checkpoints" / "ep0-ba4-rank0.pt"), "spin_dataloaders": spins}
    pruned, alone = inputs(True, **resume), inputs(False, **resume)
    assert len(pruned) == len(alone) > 0
    assert all(torch.equal(mine, others) for mine, others in zip(pruned, alone, strict=True))


@pytest.mark.long
def test_checkpoints_and_the_manifest_are_gathered_on_rank_zero_alone(
    run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: dict[str, list[int]] = {"gather": [], "all_gather": []}
    # A test before this one may have left a process group of one.
    for kind, (name, seen) in itertools.product((SingleProcess, TorchDistributed), sizes.items()):
        original = getattr(kind, name)

        def counted(self: Any, values: Any, original: Any = original, seen: list[int] = seen) -> Any:
            seen.append(len(values))
            return original(self, values)

        monkeypatch.setattr(kind, name, counted)
    _, _, scores = run("3ba")
    assert (tmp_path / "manifest.parquet").exists()
    assert len(scores) == sizes["all_gather"].pop() == NUM_SAMPLES  # asked for by the test, on every rank
    assert max(sizes["all_gather"]) <= -(-NUM_SAMPLES // BATCH_SIZE)  # a mean for every step of an epoch
    assert sizes["gather"].count(NUM_SAMPLES) > EPOCHS


@pytest.mark.long
def test_a_missing_or_foreign_state_is_refused(
    make_mds: Callable[..., str], make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    folders = [make_mds(60, seed=1), make_mds(70, seed=2)]

    def dataset(order: int) -> TupleDataset:
        streams = [Stream(local=folder) for folder in folders[::order]]
        return TupleDataset(streams=streams, shuffle=True, batch_size=BATCH_SIZE)

    def trainer(order: int, algorithms: list[DataPruning], **arguments: Any) -> Trainer:
        return make_trainer("", algorithms, dataset=dataset(order), run_name="run", **arguments)

    saving = {"save_folder": str(tmp_path / "checkpoints"), "save_interval": "7ba", "save_overwrite": True}
    trainer(1, [make_ted(0.6, folder=str(tmp_path / "run"))], **saving).fit()
    checkpoint = str(tmp_path / "checkpoints" / "ep1-ba21-rank0.pt")
    # Scores go by sample id, and the ids hang on the order of the streams.
    with pytest.raises(ValueError, match="order that it started with"):
        trainer(-1, [make_ted(0.6, folder=str(tmp_path / "run"))], load_path=checkpoint).fit()
    skip_list = tmp_path / "run" / "skip_lists" / "ep0001.parquet"
    data = bytearray(skip_list.read_bytes())
    data[len(data) // 10] ^= 1  # of the rows: names in the footer are there twice, and one of them serves for nothing
    skip_list.write_bytes(data)
    with pytest.raises(SkipListError, match=r"ep0001\.parquet"):
        trainer(1, [make_ted(0.6, folder=str(tmp_path / "run"))], load_path=checkpoint).fit()
    skip_list.unlink()
    with pytest.raises(OSError, match=r"ep0001\.parquet of this run cannot be read.*[Pp]ut the run folder"):
        trainer(1, [make_ted(0.6, folder=str(tmp_path / "run"))], load_path=checkpoint).fit()
    # A run without pruning cannot be gone on with in the middle of an epoch: its samples were not measured.
    trainer(1, [], **saving).fit()
    with pytest.raises(ValueError, match="middle of epoch 1 and holds no state of TED"):
        trainer(1, [make_ted(0.6, folder=str(tmp_path / "new"))], load_path=checkpoint).fit()
