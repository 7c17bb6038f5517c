"""Pruning inside Composer's training loop."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from composer import Callback, Event, State, Trainer
from composer.algorithms import SelectiveBackprop, SeqLengthWarmup
from composer.loggers import InMemoryLogger, ProgressBarLogger
from composer.models import ComposerClassifier, ComposerModel
from composer.utils import reproducibility
from numpy.typing import NDArray
from small_run import BATCH_SIZE, ReadPerEpoch, TupleDataset, make_model, make_random, make_ted
from streaming import StreamingDataset
from torch import nn
from torch.utils.data import DataLoader

from ted_stream import TED, DataPruning, PrunedStreamingDataset, RandomPruning, read_skip_list
from ted_stream.methods import Chosen
from ted_stream.pruning import Owned

NUM_SAMPLES = 203
SCHEDULES = ("roller-coaster", "constant", "linear", "cosine")


@pytest.fixture(scope="module")
def folder(make_mds: Callable[..., str]) -> str:
    return make_mds(NUM_SAMPLES)


@pytest.mark.long
@pytest.mark.parametrize("annealing", [0, 0.125])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_planned_save_ratio_is_what_the_dataset_saves(
    schedule: str, annealing: float, folder: str, make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    epochs = 8
    dataset = TupleDataset(local=folder, shuffle=True, batch_size=BATCH_SIZE)
    reads = ReadPerEpoch(dataset)
    ted = make_ted(0.7, schedule=schedule, annealing=annealing, folder=str(tmp_path))
    make_trainer(folder, [ted], callbacks=[reads], dataset=dataset, max_duration=f"{epochs}ep").fit()
    forwarded = sum(map(len, reads.epochs))
    planned = ted.engine.plan.save_ratio
    assert planned is not None
    assert planned == 1 - forwarded / (NUM_SAMPLES * epochs)
    assert ted.save_ratio == planned
    assert [len(epoch) for epoch in reads.epochs] == [record.kept for record in ted.records]
    summary = json.loads((tmp_path / "run.json").read_text())
    assert summary["planned_save_ratio"] == summary["save_ratio"] == planned
    assert planned > 0.25


def test_every_epoch_reads_its_skip_lists_kept_samples_once(
    folder: str, make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    dataset = TupleDataset(local=folder, shuffle=True, batch_size=BATCH_SIZE)
    reads = ReadPerEpoch(dataset)
    ted = make_ted(0.6, folder=str(tmp_path))
    make_trainer(folder, [ted], callbacks=[reads], dataset=dataset).fit()
    for record, read in zip(ted.records, reads.epochs, strict=True):
        skip_list = read_skip_list(tmp_path / record.skip_list, layout=dataset.layout, digest=record.digest)
        assert sorted(read) == skip_list.kept_ids().tolist()
        assert (skip_list.epoch, skip_list.method) == (record.epoch, "TED")
    assert reads.epochs[0] != sorted(reads.epochs[0])  # shuffled


def test_selection_keeps_the_highest_running_scores(
    folder: str, make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    """Replays the run's scores from its measurements with plain numpy."""
    measured: list[dict[int, float]] = [{}]

    class Spy(Callback):
        """After the algorithm, the epoch's measurements so far are those of this batch and the ones before."""

        def epoch_end(self, state: State, logger: Any) -> None:
            measured.append({})

        def batch_end(self, state: State, logger: Any) -> None:
            step = ted.engine.step.measurements()
            measured[-1].update(zip(step.ids.tolist(), step.importance.tolist(), strict=True))

    ted = make_ted(0.6, annealing=0, folder=str(tmp_path))
    dataset = TupleDataset(local=folder, shuffle=True, batch_size=BATCH_SIZE)
    make_trainer(folder, [ted], dataset=dataset, callbacks=[Spy()]).fit()
    score: dict[int, float] = {}
    for record, epoch in zip(ted.records, measured, strict=False):
        if record.epoch:
            ranked = sorted(score, key=lambda sample: -score[sample])
            kept = read_skip_list(tmp_path / record.skip_list).kept_ids()
            assert set(ranked[: record.kept]) == set(kept.tolist())
        for sample, value in epoch.items():
            running = 0.9 * score[sample] + 0.1 * value if sample in score else value
            score[sample] = float(np.float32(running))


@pytest.mark.long
@pytest.mark.parametrize("persistent", [False, True])
def test_workers_train_as_the_main_process_does(
    persistent: bool, folder: str, make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    """Workers see every epoch's list, those that live on too; batches, and so weights and lists, are the same."""

    def run(workers: int) -> tuple[list[str], torch.Tensor]:
        ted = make_ted(0.6, folder=str(tmp_path / str(workers)))
        dataset = TupleDataset(local=folder, shuffle=True, batch_size=BATCH_SIZE)
        loader = DataLoader(
            dataset, batch_size=BATCH_SIZE, num_workers=workers, persistent_workers=persistent and workers > 0
        )
        trainer = make_trainer(folder, [ted], dataloader=loader, max_duration="4ep")
        trainer.fit()
        weights = torch.cat([parameter.detach().flatten() for parameter in trainer.state.model.parameters()])
        return [record.digest for record in ted.records], weights

    (lists, weights), (worker_lists, worker_weights) = run(0), run(2)
    # The run name is no part of a digest.
    assert worker_lists == lists
    assert torch.equal(worker_weights, weights)


class DictModel(ComposerModel):
    """Takes dict batches and refuses what it does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(6, 3)

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        assert set(batch) == {"x", "labels"}
        return self.net(batch["x"])

    def loss(self, outputs: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return nn.functional.cross_entropy(outputs, batch["labels"])


class DictDataset(PrunedStreamingDataset):
    def __getitem__(self, at: Any) -> Any:
        sample = super().__getitem__(at)
        return {"x": sample["x"], "labels": sample["y"]}


@pytest.mark.long
def test_dict_batches_train_and_evaluate(folder: str, make_trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    dataset = DictDataset(local=folder, shuffle=True, batch_size=BATCH_SIZE)
    ted = make_ted(0.5, folder=str(tmp_path))
    trainer = make_trainer(folder, [ted], dataset=dataset, model=DictModel(), device_train_microbatch_size=3)
    trainer.fit()
    assert sum(record.forwarded for record in ted.records) == sum(record.kept for record in ted.records)
    assert ted.records[-1].kept == NUM_SAMPLES


@pytest.mark.long
def test_an_evaluation_set_of_the_same_class_gets_no_ids(
    folder: str, make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    evaluation = TupleDataset(local=folder, batch_size=BATCH_SIZE)
    train = TupleDataset(local=folder, shuffle=True, batch_size=BATCH_SIZE)
    trainer = make_trainer(
        folder,
        [make_ted(0.5, folder=str(tmp_path))],
        dataset=train,
        eval_dataloader=DataLoader(evaluation, batch_size=BATCH_SIZE),
        eval_interval="2ba",
    )
    trainer.fit()
    assert Counter(evaluation.read).keys() == set(range(NUM_SAMPLES))


def test_the_loss_is_divided_by_the_keep_ratio_while_pruning(
    folder: str, make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    """Plain SGD: with the correction, a step is the uncorrected one divided by r_t."""

    def first_pruned_step(loss_correction: bool) -> torch.Tensor:
        model = make_model()
        steps: list[torch.Tensor] = []

        class Watch(Callback):
            def run_event(self, event: Event, state: State, logger: Any) -> None:
                if state.timestamp.epoch == 1 and event == Event.AFTER_TRAIN_BATCH and not steps:
                    gradients = [p.grad for p in model.parameters() if p.grad is not None]
                    steps.append(torch.cat([gradient.flatten().clone() for gradient in gradients]))

        make_trainer(
            folder,
            [make_ted(0.6, loss_correction=loss_correction, folder=str(tmp_path / str(loss_correction)))],
            callbacks=[Watch()],
            model=model,
            optimizers=torch.optim.SGD(model.parameters(), 0.1),
            max_duration="4ep",
        ).fit()
        return steps[0]

    schedule = TED(0.6).keep_ratios
    expected = first_pruned_step(False) / schedule.keep_ratio(1, 4)
    torch.testing.assert_close(first_pruned_step(True), expected, rtol=1e-5, atol=1e-7)


def test_random_pruning_draws_anew_and_scores_nothing(
    folder: str, make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    pruning = make_random(0.5, schedule="constant", annealing=0, folder=str(tmp_path))
    make_trainer(folder, [pruning]).fit()
    assert [record.kept for record in pruning.records] == [102] * 6
    assert all(25 < record.returning < 77 for record in pruning.records[1:])
    manifest = pq.read_table(tmp_path / "manifest.parquet")
    assert manifest.num_rows == 102
    assert manifest["score"].null_count == 102


def test_the_manifest_lists_what_the_last_pruned_epoch_kept(
    folder: str, make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    ted = make_ted(0.6, annealing=0.2, folder=str(tmp_path))
    make_trainer(folder, [ted]).fit()
    last_pruned = ted.records[-2]
    assert (last_pruned.keep_ratio < 1, ted.records[-1].keep_ratio) == (True, 1)
    skip_list = read_skip_list(tmp_path / last_pruned.skip_list)
    manifest = pq.read_table(tmp_path / "manifest.parquet").to_pydict()
    assert manifest["sample_id"] == skip_list.kept_ids().tolist()
    assert manifest["score"] == ted.engine.scores()[manifest["sample_id"]].tolist()
    shards = {
        shard.name: offset
        for shard, offset in zip(skip_list.layout.shards, skip_list.layout.shard_offsets, strict=True)
    }
    found = [shards[shard] + position for shard, position in zip(manifest["shard"], manifest["position"], strict=True)]
    assert found == manifest["sample_id"]


@pytest.mark.long
def test_measuring_does_not_disturb_training(folder: str, make_trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    """At prune_ratio 0 the weights are those of a run without the algorithm, to the bit, at every site."""

    def weights(algorithms: list[DataPruning]) -> torch.Tensor:
        trainer = make_trainer(folder, algorithms, max_duration="2ep")
        trainer.fit()
        return torch.cat([parameter.detach().flatten() for parameter in trainer.state.model.parameters()])

    plain = weights([])
    for site in ("input", "features", "output"):
        assert torch.equal(weights([make_ted(0, site=site, folder=str(tmp_path / site))]), plain)


@pytest.mark.long
def test_an_algorithm_used_again_starts_afresh(
    folder: str, make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    ted, names = make_ted(0.6, folder=str(tmp_path / "{run_name}")), iter("ab")

    def run() -> tuple[list[str], torch.Tensor]:
        trainer = make_trainer(folder, [ted], max_duration="3ep", run_name=next(names))
        trainer.fit()
        weights = torch.cat([parameter.detach().flatten() for parameter in trainer.state.model.parameters()])
        assert [record.epoch for record in ted.records] == [0, 1, 2]
        return [record.digest for record in ted.records], weights

    (first_lists, first_weights), (lists, weights) = run(), run()
    assert lists == first_lists
    assert torch.equal(weights, first_weights)


def test_metrics_are_logged_and_shown(
    folder: str, make_trainer: Callable[..., Trainer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[dict[str, Any]] = []
    monkeypatch.setattr(ProgressBarLogger, "log_to_pbar", lambda self, data: shown.append(data))
    memory = InMemoryLogger()
    ted = make_ted(0.6, annealing=0.2, folder=str(tmp_path))
    chosen_by: list[NDArray[np.float32]] = []
    choose = TED.choose

    def spy(method: TED, owned: Owned, epoch: int, k: int | None) -> Chosen:
        chosen_by.append(owned.scores.copy())
        return choose(method, owned, epoch, k)

    monkeypatch.setattr(TED, "choose", spy)
    make_trainer(folder, [ted], loggers=[memory], progress_bar=True).fit()

    def logged(name: str) -> list[float]:
        return [value for _, value in memory.data[f"pruning/{name}"]]

    assert logged("keep_ratio") == [record.keep_ratio for record in ted.records]
    assert logged("kept_samples") == [record.kept for record in ted.records]
    assert logged("returning_samples") == [record.returning for record in ted.records]
    assert logged("unmeasured_samples") == [NUM_SAMPLES, 0, 0, 0, 0, 0]
    assert logged("forwarded_samples") == [record.forwarded for record in ted.records]
    assert logged("save_ratio")[-1] == ted.save_ratio == logged("planned_save_ratio")[0]
    assert all(seconds > 0 for seconds in logged("boundary_seconds"))
    assert logged("kept_ratio") == [record.kept / NUM_SAMPLES for record in ted.records]
    kept_before = [NUM_SAMPLES, *(record.kept for record in ted.records[:-1])]
    newly_pruned = [
        before - record.kept + record.returning for before, record in zip(kept_before, ted.records, strict=True)
    ]
    assert logged("newly_pruned_samples") == newly_pruned
    saved = NUM_SAMPLES * len(ted.records) - sum(record.forwarded for record in ted.records)
    assert logged("saved_samples")[-1] == saved > 0
    assert logged("estimated_saved_seconds")[-1] == saved * (ted.engine.pace.seconds_per_sample or 0) > 0
    assert ted.records[0].score_quantiles == {}
    for p in (0.05, 0.25, 0.5, 0.75, 0.95):
        by_epoch = [float(np.quantile(scores, p, method="inverted_cdf")) for scores in chosen_by[1:]]
        assert logged(f"score_q{round(100 * p):02d}") == by_epoch
        assert [record.score_quantiles[str(p)] for record in ted.records[1:]] == by_epoch
    kept = [data["kept"] for data in shown if "kept" in data]
    assert kept == [record.kept for record in ted.records]


def test_the_logged_loss_is_that_of_the_samples(
    folder: str, make_trainer: Callable[..., Trainer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses: list[float] = []
    plain_loss = ComposerClassifier.loss

    def loss(self: ComposerClassifier, outputs: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
        found = plain_loss(self, outputs, batch, *args, **kwargs)
        losses.append(found.item())
        return found

    memory = InMemoryLogger()
    ted = make_ted(0.6, folder=str(tmp_path))
    trainer = make_trainer(folder, [ted], loggers=[memory])
    monkeypatch.setattr(ComposerClassifier, "loss", loss)
    trainer.fit()
    assert {value for _, value in memory.data["loss/train/total"]} <= set(losses)
    assert max(record.loss_factor for record in ted.records) > 1, "or there would be nothing to see"


def test_evaluation_within_an_epoch_is_no_training(
    folder: str, make_trainer: Callable[..., Trainer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_out: list[float] = []
    monkeypatch.setattr("ted_stream.engine.pace.Pace.leave_out", lambda self, seconds: left_out.append(seconds))
    evaluation = DataLoader(TupleDataset(local=folder, batch_size=BATCH_SIZE), batch_size=BATCH_SIZE)
    ted = make_ted(0.6, folder=str(tmp_path))
    trainer = make_trainer(folder, [ted], eval_dataloader=evaluation, eval_interval="3ba", max_duration="2ep")
    trainer.eval()  # before there is a run
    assert not left_out
    trainer.fit()
    assert len(left_out) >= trainer.state.timestamp.batch.value // 3 > 0
    assert left_out[-1] == trainer.state.eval_timestamp.total_wct.total_seconds() > 0


def test_after_the_run_the_dataset_is_whole_again(
    folder: str, make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    dataset = TupleDataset(local=folder, shuffle=True, batch_size=BATCH_SIZE)
    make_trainer(folder, [make_ted(0.6, annealing=0, folder=str(tmp_path))], dataset=dataset).fit()
    samples = list(dataset)
    assert len(samples) == len(dataset) == NUM_SAMPLES
    assert len(samples[0]) == 2


# Wrong use ------------------------------------------------------------------------------------------------------


def assert_refused(trainer: Trainer, *words: str) -> None:
    """The run stops before its first batch, and the message has these words."""
    with pytest.raises(ValueError, match=r".*".join(words)):
        trainer.fit()
    assert trainer.state.timestamp.batch == 0


def test_durations_in_tokens_are_refused(folder: str, make_trainer: Callable[..., Trainer]) -> None:
    assert_refused(make_trainer(folder, [make_ted(0.5)], max_duration="20tok"), "20", "epochs", "90ep")


def test_datasets_that_cannot_be_pruned_are_refused(folder: str, make_trainer: Callable[..., Trainer]) -> None:
    dataset = StreamingDataset(local=folder, batch_size=BATCH_SIZE)
    assert_refused(make_trainer(folder, [make_ted(0.5)], dataset=dataset), "StreamingDataset", "Prunable")


def test_collate_functions_that_lose_the_ids_are_refused(folder: str, make_trainer: Callable[..., Trainer]) -> None:
    def collate(samples: list[Any]) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.stack([torch.tensor(sample[0]) for sample in samples]), torch.tensor(
            [sample[1] for sample in samples]
        )

    dataset = TupleDataset(local=folder, batch_size=BATCH_SIZE)
    loader = DataLoader(dataset, batch_size=BATCH_SIZE, collate_fn=collate)
    assert_refused(make_trainer(folder, [make_ted(0.5)], dataloader=loader), "sample ids", "collate_fn")

    def collate_dicts(samples: list[Any]) -> dict[str, torch.Tensor]:
        return {key: torch.tensor(np.stack([sample[key] for sample in samples])) for key in ("x", "labels")}

    dicts = DictDataset(local=folder, batch_size=BATCH_SIZE)
    loader = DataLoader(dicts, batch_size=BATCH_SIZE, collate_fn=collate_dicts)
    trainer = make_trainer(folder, [make_ted(0.5)], dataloader=loader, model=DictModel())
    assert_refused(trainer, "sample_id", "labels", "collate_fn")


@pytest.mark.long
def test_probing_the_collate_function_leaves_randomness_alone(
    folder: str, make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    class Augmented(TupleDataset):
        def __getitem__(self, at: Any) -> Any:
            x, y = super().__getitem__(at)
            return torch.tensor(x) + torch.randn(6), y

    trainer = make_trainer(
        folder, [make_ted(0.5, folder=str(tmp_path))], dataset=Augmented(local=folder, batch_size=BATCH_SIZE)
    )
    before: list[Any] = []

    class Watch(Callback):
        def run_event(self, event: Event, state: State, logger: Any) -> None:
            if event in (Event.FIT_START, Event.EPOCH_START) and len(before) < 2:
                before.append(torch.get_rng_state())

    reproducibility.seed_all(3)
    expected = torch.get_rng_state()
    trainer.state.callbacks.append(Watch())
    trainer.fit()
    assert all(torch.equal(state, expected) for state in before)


@pytest.mark.parametrize("algorithm", [SelectiveBackprop(), SeqLengthWarmup()])
def test_algorithms_that_change_the_batch_are_refused(
    algorithm: Any, folder: str, make_trainer: Callable[..., Trainer]
) -> None:
    trainer = make_trainer(folder, [make_ted(0.5)])
    trainer.state.algorithms.append(algorithm)  # not through the Trainer: one wants a language model at once
    assert_refused(trainer, type(algorithm).__name__, "Remove one")


def test_two_pruning_algorithms_are_refused(folder: str, make_trainer: Callable[..., Trainer]) -> None:
    assert_refused(make_trainer(folder, [make_ted(0.5), make_random(0.5)]), "both prune")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"batching_method": "stratified"}, ("stratified", "random")),
        ({"shuffle_algo": "py1s"}, ("py1s", "num_canonical_nodes")),
        ({"batch_size": 4}, ("batch_size is 8", "4", "same batch_size")),
    ],
)
def test_datasets_that_would_lose_samples_are_refused(
    arguments: dict[str, Any], words: tuple[str, ...], folder: str, make_trainer: Callable[..., Trainer]
) -> None:
    settings: dict[str, Any] = {"local": folder, "shuffle": True, "batch_size": BATCH_SIZE} | arguments
    assert_refused(make_trainer(folder, [make_ted(0.5)], dataset=TupleDataset(**settings)), *words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"prune_ratio": 1}, r"prune_ratio is 1.*\[0, 1\)"),
        ({"prune_ratio": -0.1}, r"prune_ratio is -0.1"),
        ({"prune_ratio": 0.5, "annealing": 1.0}, r"annealing is 1.0"),
        ({"prune_ratio": 0.5, "alpha": 1.0}, r"alpha is 1.0"),
        ({"prune_ratio": 0.5, "site": "logits"}, r"'logits'.*'output'"),
        ({"prune_ratio": 0.5, "schedule": "step"}, r"'step'.*'linear'"),
        ({"prune_ratio": 0.5, "choice": "best"}, r"'best'.*'sampled'"),
        ({"prune_ratio": 0.5, "choice": "sampled", "temperature": 0}, r"temperature is 0"),
        ({"prune_ratio": 0.5, "importance": "random"}, r"'random'.*'loss'"),
    ],
)
def test_bad_arguments_are_refused_at_construction(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TED(**arguments)


def test_repr_rebuilds_the_algorithm() -> None:
    ted = TED(0.3, site="output", choice="sampled", temperature=0.5)
    for method, layer in ((ted, "head"), (RandomPruning(0.3, schedule="constant"), None)):
        assert eval(repr(method)) == method
        pruning = DataPruning(method, folder="here", seed=4, progress="samples", output_layer=layer)
        assert repr(eval(repr(pruning))) == repr(pruning)


def test_an_unwritable_run_folder_stops_the_run(
    folder: str, make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    trainer = make_trainer(folder, [make_ted(0.5, folder=str(tmp_path / "file"))])
    with pytest.raises(OSError, match=r"file could not be written.*folder="):
        trainer.fit()


def test_evaluating_on_the_training_dataset_is_refused(folder: str, make_trainer: Callable[..., Trainer]) -> None:
    dataset = TupleDataset(local=folder, shuffle=True, batch_size=BATCH_SIZE)
    evaluation = DataLoader(dataset, batch_size=BATCH_SIZE)
    trainer = make_trainer(folder, [make_ted(0.5)], dataset=dataset, eval_dataloader=evaluation)
    assert_refused(trainer, "reads the training dataset", "dataset of its own")


def test_epochs_too_small_for_the_nodes_are_refused(folder: str, make_trainer: Callable[..., Trainer]) -> None:
    dataset = TupleDataset(local=folder, shuffle=True, batch_size=BATCH_SIZE, num_canonical_nodes=128)
    trainer = make_trainer(folder, [make_ted(0.7, annealing=0)], dataset=dataset)
    assert_refused(trainer, "Epoch 5 is to keep", "num_canonical_nodes = 128", "Prune less")
