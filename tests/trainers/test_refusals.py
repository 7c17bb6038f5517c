"""Runs that would score the wrong samples, or lose some, stop before their first update, and say why."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from composer import Algorithm, DataSpec, Event, State, Trainer
from composer.models import ComposerModel
from small_run import BATCH_SIZE, TupleDataset, make_ted
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, default_collate

from ted_stream import TED, DataPruning, InfoBatch, PrunedSampler, RandomPruning
from ted_stream.methods import Method

NUM_SAMPLES = 61


@pytest.fixture(scope="module")
def folder(make_mds: Callable[..., str]) -> str:
    return make_mds(NUM_SAMPLES)


def assert_refused(trainer: Trainer, *words: str, error: type[Exception] = ValueError) -> None:
    """The run stops before its first update, and the message has these words."""
    before = [parameter.detach().clone() for parameter in trainer.state.model.parameters()]
    with pytest.raises(error, match="(?s)" + ".*".join(words)):
        trainer.fit()
    assert trainer.state.timestamp.batch == 0
    for parameter, value in zip(trainer.state.model.parameters(), before, strict=True):
        assert torch.equal(parameter, value)


# Rows and ids


def sort_rows(samples: list[Any]) -> Any:
    """Puts rows into an order of their own, and leaves the ids as they came."""
    *columns, ids = default_collate(samples)
    order = columns[0][:, 0].argsort()
    return [*(column[order] for column in columns), ids]


def sort_rows_and_ids(samples: list[Any]) -> Any:
    columns = default_collate(samples)
    order = columns[0][:, 0].argsort()
    return [column[order] for column in columns]


def test_a_collate_function_that_reorders_rows_and_not_ids_is_refused(
    folder: str, make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    def trainer(collate: Any) -> Trainer:
        dataset = TupleDataset(local=folder, batch_size=BATCH_SIZE)
        loader = DataLoader(dataset, batch_size=BATCH_SIZE, collate_fn=collate)
        return make_trainer(folder, [make_ted(0.5, folder=tmp_path)], dataloader=loader, max_duration="2ep")

    assert_refused(trainer(sort_rows), "another order than their sample ids", "reorder the ids with the rows")
    trainer(sort_rows_and_ids).fit()


def test_a_collate_function_that_reorders_rows_of_map_style_data_is_refused(
    make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    data = TensorDataset(torch.randn(40, 6), torch.arange(40) % 3)
    loader = DataLoader(data, batch_size=8, sampler=PrunedSampler(data), collate_fn=sort_rows_and_ids)
    trainer = make_trainer("", [make_ted(0.5, folder=tmp_path)], dataset=data, dataloader=loader)
    assert_refused(trainer, "another order than that of its samples")


@pytest.mark.parametrize("drops", [False, True])
def test_a_split_that_reorders_or_loses_rows_is_refused(
    drops: bool, folder: str, make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    def split(batch: Any, microbatch_size: Any) -> list[Any]:
        order = torch.arange(len(batch[0]))
        order = order if drops else order.flip(0)
        parts = [[column[part] for column in batch] for part in order.split(int(microbatch_size))]
        return parts[:-1] if drops else parts

    if drops:
        order_words = ("4 rows of a batch", "8 samples", "MyAlgorithm", "split_batch")
    else:
        order_words = ("holds other rows of its batch", "split_batch")

    class MyAlgorithm(Algorithm):
        def match(self, event: Event, state: State) -> bool:
            return False

        def apply(self, event: Event, state: State, logger: Any) -> None:
            raise AssertionError

    dataset = TupleDataset(local=folder, batch_size=BATCH_SIZE)
    spec = DataSpec(DataLoader(dataset, batch_size=BATCH_SIZE), split_batch=split)
    trainer = make_trainer(
        folder,
        [make_ted(0.5, folder=tmp_path), MyAlgorithm()],
        dataset=dataset,
        dataloader=spec,
        device_train_microbatch_size=4,
    )
    with pytest.raises(ValueError, match="(?s)" + ".*".join(order_words)):
        trainer.fit()


def test_an_algorithm_that_changes_the_number_of_rows_is_named(
    folder: str, make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    class Doubling(Algorithm):
        def match(self, event: Event, state: State) -> bool:
            return event == Event.AFTER_DATALOADER

        def apply(self, event: Event, state: State, logger: Any) -> None:
            state.batch = [torch.cat([column, column]) for column in state.batch]

    trainer = make_trainer(folder, [Doubling(), make_ted(0.5, folder=tmp_path)])
    assert_refused(trainer, "16 rows of a batch", "8 samples", "Doubling")


class Flips(Algorithm):
    """Turns a batch, or a microbatch, upside down."""

    def __init__(self, event: Event, in_place: bool) -> None:
        self.event, self.in_place = event, in_place

    def match(self, event: Event, state: State) -> bool:
        return event == self.event

    def apply(self, event: Event, state: State, logger: Any) -> None:
        columns = [column.flip(0) for column in state.batch]
        if self.in_place:
            for column, flipped in zip(state.batch, columns, strict=True):
                column.copy_(flipped)
        else:
            state.batch = columns


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("event", [Event.AFTER_DATALOADER, Event.BATCH_START, Event.BEFORE_FORWARD])
@pytest.mark.parametrize("microbatch_size", [None, 4])
def test_an_algorithm_that_moves_rows_is_refused(
    microbatch_size: int | None,
    event: Event,
    in_place: bool,
    folder: str,
    make_trainer: Callable[..., Trainer],
    tmp_path: Path,
) -> None:
    for flips_last in (False, True):
        algorithms: list[Algorithm] = [make_ted(0.5, folder=tmp_path / str(flips_last)), Flips(event, in_place)]
        trainer = make_trainer(
            folder, algorithms if flips_last else algorithms[::-1], device_train_microbatch_size=microbatch_size
        )
        assert_refused(trainer, "other rows of its batch, or in another order", "moves rows: Flips, split_batch")


def test_rows_that_move_are_seen_beside_rows_that_are_all_alike(
    make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    data = TensorDataset(torch.randn(40, 6), torch.zeros(40, dtype=torch.int64))
    loader = DataLoader(data, batch_size=8, sampler=PrunedSampler(data))
    algorithms = [make_ted(0.5, folder=tmp_path), Flips(Event.BATCH_START, True)]
    assert_refused(make_trainer("", algorithms, dataset=data, dataloader=loader), "moves rows: Flips")


# Loaders


def test_a_streaming_loader_that_drops_the_last_batch_is_refused(
    folder: str, make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    dataset = TupleDataset(local=folder, batch_size=BATCH_SIZE)
    loader = DataLoader(dataset, batch_size=BATCH_SIZE, drop_last=True)
    trainer = make_trainer(folder, [make_ted(0.5, folder=tmp_path)], dataset=dataset, dataloader=loader)
    assert_refused(trainer, "drop_last=True", "kept samples", "drop_last=False")


@pytest.mark.parametrize("interrupt", [RuntimeError, KeyboardInterrupt])
def test_after_an_interrupted_fit_the_dataset_is_whole(
    interrupt: type[BaseException], folder: str, make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    class Interrupt(Algorithm):
        def match(self, event: Event, state: State) -> bool:
            return event == Event.BATCH_START and state.timestamp.epoch == 2

        def apply(self, event: Event, state: State, logger: Any) -> None:
            raise interrupt

    dataset = TupleDataset(local=folder, shuffle=True, batch_size=BATCH_SIZE)
    loader = DataLoader(dataset, batch_size=BATCH_SIZE)
    with pytest.raises(interrupt):
        make_trainer(folder, [make_ted(0.6, folder=tmp_path), Interrupt()], dataset=dataset, dataloader=loader).fit()
    assert len(dataset) == NUM_SAMPLES
    samples = list(dataset)
    assert len(samples) == NUM_SAMPLES
    assert len(samples[0]) == 2  # no id
    plain = make_trainer(folder, dataset=dataset, dataloader=loader, max_duration="2ep")
    plain.fit()
    assert plain.state.timestamp.sample == 2 * NUM_SAMPLES


# Losses


class Own(ComposerModel):
    """A model with a loss of one's own."""

    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor], outputs: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, outputs))
        self.own_loss = loss

    def forward(self, batch: Any) -> Tensor:
        return self.net(batch[0])

    def loss(self, outputs: Any, batch: Any) -> Tensor:
        return self.own_loss(outputs, batch[1])


def scores(
    loss: Callable[[Tensor, Tensor], Tensor],
    make_trainer: Callable[..., Trainer],
    out: Path,
    *,
    batch_size: int,
    outputs: int = 3,
    **settings: Any,
) -> Any:
    data = TensorDataset(torch.randn(24, 6, generator=torch.Generator().manual_seed(0)), torch.arange(24) % 3)
    loader = DataLoader(data, batch_size=batch_size, sampler=PrunedSampler(data, shuffle=False))
    pruning = make_ted(0.5, folder=out / str(batch_size), **settings)
    model = Own(loss, outputs)
    trainer = make_trainer(
        "", [pruning], dataset=data, dataloader=loader, model=model, learning_rate=0.0, max_duration="2ep"
    )
    trainer.fit()
    return pruning.engine.scores()


@pytest.mark.parametrize("settings", [{}, {"importance": "loss"}], ids=["mask_gradient", "loss"])
def test_scores_of_a_sum_are_those_of_a_mean(
    settings: dict[str, Any], make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    def mean(outputs: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(outputs, labels)

    def total(outputs: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(outputs, labels, reduction="sum")

    expected = scores(mean, make_trainer, tmp_path / "mean", batch_size=8, **settings)
    for batch_size in (4, 12):
        found = scores(total, make_trainer, tmp_path / "sum", batch_size=batch_size, **settings)
        torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-4, atol=1e-6)


def test_a_loss_that_weighs_classes_is_refused(make_trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    def weighted(outputs: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(outputs, labels, weight=torch.tensor([1.0, 5.0, 0.2]))

    with pytest.raises(ValueError, match=r"(?s)mean.*sum"):
        scores(weighted, make_trainer, tmp_path, batch_size=8)


def test_the_loss_measured_is_the_models_own(make_trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    def regression(outputs: Tensor, labels: Tensor) -> Tensor:
        return F.mse_loss(outputs[:, 0], labels.float())

    found = scores(regression, make_trainer, tmp_path, batch_size=8, outputs=1, importance="loss")
    inputs = torch.randn(24, 6, generator=torch.Generator().manual_seed(0))
    expected = (Own(regression, 1).net(inputs)[:, 0] - (torch.arange(24) % 3)) ** 2
    torch.testing.assert_close(torch.tensor(found), expected.detach(), rtol=1e-4, atol=1e-6)


# Output layers


class HeadFirst(ComposerModel):
    """Registers its head before its body."""

    def __init__(self, detached: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(16, 3)
        self.body = nn.Linear(6, 16)
        self.detached = detached

    def forward(self, batch: Any) -> Tensor:
        return self.head(F.relu(self.body(batch[0])))

    def loss(self, outputs: Any, batch: Any) -> Tensor:
        logits = outputs.detach() + 0 * self.body.weight.sum() if self.detached else outputs
        return F.cross_entropy(logits, batch[1])


def test_the_layer_that_made_the_logits_is_found_and_named(
    folder: str, make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    pruning = make_ted(0.5, folder=tmp_path)
    make_trainer(folder, [pruning], model=HeadFirst(), max_duration="2ep").fit()
    assert pruning.engine.output_layer == "head"
    assert '"output_layer": "head"' in (tmp_path / "run.json").read_text()


def test_a_loss_that_does_not_depend_on_the_layer_is_refused(
    folder: str, make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    trainer = make_trainer(folder, [make_ted(0.5, folder=tmp_path)], model=HeadFirst(detached=True))
    assert_refused(trainer, "loss", "output_layer")


# Arguments


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"folder": ""}, ValueError, r"folder is ''.*root.*\{run_name\}"),
        ({"folder": "runs/{epoch}"}, ValueError, r"'runs/\{epoch\}'.*KeyError.*\{run_name\} is the only.*'\{\{'"),
        ({"folder": "x{}"}, ValueError, r"'x\{\}'.*IndexError.*\{run_name\} is the only"),
        ({"folder": Path("a{run_name")}, ValueError, r"'a\{run_name'.*\{run_name\} is the only"),
        ({"folder": 3}, TypeError, r"folder is 3"),
        ({"seed": "a"}, TypeError, r"seed is 'a'.*whole number"),
        ({"seed": 1.5}, TypeError, r"seed is 1.5"),
        ({"progress": "batches"}, ValueError, r"'batches'.*'samples'"),
        ({"output_layer": 3}, TypeError, r"output_layer is 3"),
        ({"output_layer": ""}, ValueError, r"output_layer is ''.*dotted name.*Leave it out"),
        ({"allow_other_settings": "no"}, TypeError, r"'no'.*True or False"),
    ],
)
def test_bad_arguments_are_refused_at_construction(
    arguments: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        DataPruning(TED(0.5), **arguments)


def test_braces_in_the_name_of_a_folder_are_written_twice() -> None:
    assert DataPruning(TED(0.5), folder="{{a}}/{run_name}").folder == "{{a}}/{run_name}"


@pytest.mark.parametrize("method", [RandomPruning(0.5), TED(0.5, importance="loss"), TED(0.5, site="input")])
def test_an_output_layer_that_is_not_needed_is_warned_of(method: Method) -> None:
    with pytest.warns(UserWarning, match=rf"output_layer='head' has no effect: {type(method).__name__}\("):
        DataPruning(method, output_layer="head")


@pytest.mark.parametrize("method", [TED(0.5), TED(0.5, site="output"), InfoBatch(0.5)])
def test_an_output_layer_that_is_needed_is_not_warned_of(method: Method) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert DataPruning(method, output_layer="head").output_layer == "head"


def test_what_is_no_method_is_refused_at_construction() -> None:
    with pytest.raises(TypeError, match=r"method is 0.5.*TED\(prune_ratio=0.7\)"):
        DataPruning(0.5)  # pyright: ignore[reportArgumentType]


def test_progress_is_by_samples_where_they_are_known() -> None:
    for method, progress in ((TED(0.5), "samples"), (RandomPruning(0.5), "samples"), (InfoBatch(0.5), "epochs")):
        assert DataPruning(method).progress.name == progress
    assert DataPruning(TED(0.5), progress="epochs").progress.name == "epochs"


def test_progress_by_samples_needs_a_plan() -> None:
    with pytest.raises(ValueError, match=r"(?s)'samples'.*InfoBatch.*not known in advance"):
        DataPruning(InfoBatch(0.5), progress="samples")
    with pytest.raises(ValueError, match=r"(?s)'sizes'.*InfoBatch.*not known in advance"):
        DataPruning(InfoBatch(0.5), progress=[3, 4])


@pytest.mark.parametrize(
    ("progress", "error", "words"),
    [
        ("tokens", ValueError, "progress is 'tokens', but it must be 'epochs', 'samples', or the size of every sample"),
        (0.5, TypeError, "progress is 0.5, but it must be .* the size of every sample"),
        ([], TypeError, r"progress is an array of float64 of shape \(0,\)"),
        ([1.5, 2.0], TypeError, r"progress is an array of float64 of shape \(2,\)"),
        ([[1, 2]], TypeError, r"progress is an array of int64 of shape \(1, 2\)"),
        ([True, False], TypeError, "progress is an array of bool"),
        ([3, 0, 2], ValueError, "progress has the size 0 for sample 1; sizes are from 1 to 2147483647"),
        (np.array([2**63, 1], np.uint64), ValueError, "progress has the size 9223372036854775808 for sample 0"),
        ([[1], [2, 3]], TypeError, "progress is a list of no one shape .*by sample id"),
    ],
)
def test_sizes_are_whole_numbers(progress: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        DataPruning(TED(0.5), progress=progress)


def test_sizes_of_other_data_are_refused(folder: str, make_trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    pruning = DataPruning(TED(0.6), folder=tmp_path, progress=[1, 2, 3])
    assert_refused(
        make_trainer(folder, [pruning]), f"sizes of 3 samples, but the dataset has {NUM_SAMPLES}", "by sample id"
    )


def test_a_method_that_keeps_another_number_than_planned_is_refused(
    folder: str, make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    class Greedy(RandomPruning):
        def choose(self, owned: Any, epoch: int, k: int | None) -> Any:
            return super().choose(owned, epoch, k and k - (epoch > 0))

    trainer = make_trainer(folder, [DataPruning(Greedy(0.5), folder=tmp_path)])
    with pytest.raises(ValueError, match=r"(?s)samples to keep in epoch 1, not .*Mend the method"):
        trainer.fit()


def test_folders_may_be_paths(folder: str, make_trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    make_trainer(folder, [DataPruning(RandomPruning(0.5), folder=tmp_path / "{run_name}")], run_name="here").fit()
    assert (tmp_path / "here" / "run.json").exists()


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/x"])
def test_a_name_that_leads_out_of_the_folder_is_refused(
    name: str, folder: str, make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    trainer = make_trainer(folder, [DataPruning(RandomPruning(0.5), folder=tmp_path / "{run_name}")], run_name=name)
    with pytest.raises(ValueError, match=rf"run_name is '{name}', which is no folder within that of folder='"):
        trainer.fit()
    assert not list(tmp_path.iterdir())
    make_trainer(folder, [DataPruning(RandomPruning(0.5), folder=tmp_path / "a")], run_name=name).fit()


def test_a_run_in_which_nothing_is_pruned_warns(
    folder: str, make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    with pytest.warns(UserWarning, match="one epoch.*nothing will be pruned"):
        make_trainer(folder, [make_ted(0.5, folder=tmp_path)], max_duration="1ep").fit()


# Other settings


def test_a_checkpoint_of_other_settings_is_refused_unless_asked_for(
    folder: str, make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    saving = {"save_folder": str(tmp_path / "checkpoints"), "save_interval": "1ep"}
    make_trainer(folder, [make_ted(0.6, folder=tmp_path)], max_duration="2ep", **saving).fit()
    load = str(tmp_path / "checkpoints" / "latest-rank0.pt")
    settings: list[dict[str, Any]] = [{"site": "output"}, {"alpha": 0.5}, {"importance": "loss"}, {"seed": 1}]
    others = [make_ted(0.7), *(make_ted(0.6, **other) for other in settings)]
    for other in [*others, DataPruning(RandomPruning(0.6))]:
        trainer = make_trainer(folder, [other], load_path=load)
        with pytest.raises(ValueError, match=r"(?s)made by TED\(prune_ratio=0.6.*seed=0.*allow_other_settings=True"):
            trainer.fit()
    mixed = DataPruning(TED(0.7), allow_other_settings=True)
    make_trainer(folder, [mixed], load_path=load, max_duration="4ep").fit()
    assert [record.epoch for record in mixed.records] == [0, 1, 2, 3]


def test_a_checkpoint_of_another_progress_is_refused_unless_asked_for(
    folder: str, make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    saving = {"save_folder": str(tmp_path / "checkpoints"), "save_interval": "1ep"}

    def pruning(progress: Any, **settings: Any) -> DataPruning:
        return DataPruning(TED(0.6), folder=tmp_path, progress=progress, **settings)

    make_trainer(folder, [pruning("samples")], max_duration="2ep", **saving).fit()
    load = tmp_path / "checkpoints" / "latest-rank0.pt"
    trainer = make_trainer(folder, [pruning("epochs")], load_path=str(load))
    with pytest.raises(ValueError, match=r"progress='samples'.*progress='epochs'.*allow_other_settings=True"):
        trainer.fit()
    with pytest.raises(ValueError, match=r"progress='samples'.*progress='sizes [0-9a-f]{12}'"):
        make_trainer(folder, [pruning([2] * NUM_SAMPLES)], load_path=str(load)).fit()
    for other in (pruning("samples"), pruning("epochs", allow_other_settings=True)):
        make_trainer(folder, [other], load_path=str(load), max_duration="4ep").fit()
        assert len(other.records) == 4
    checkpoint = torch.load(load, weights_only=False)
    ((_, state),) = checkpoint["state"]["algorithms"]
    del state["engine"]["progress"]  # as those of before
    torch.save(checkpoint, tmp_path / "before.pt")
    make_trainer(folder, [pruning("epochs")], load_path=str(tmp_path / "before.pt"), max_duration="3ep").fit()


def test_the_state_is_plain_and_equal_to_itself(
    folder: str, make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    """It loads under weights_only, names the algorithm as Composer does, and holds no NaN that equals nothing."""
    pruning = make_ted(0.6, folder=tmp_path)
    trainer = make_trainer(folder, [pruning], max_duration="6ep")

    class Stop(Algorithm):
        def match(self, event: Event, state: State) -> bool:
            return event == Event.BATCH_START and state.timestamp.batch == 3

        def apply(self, event: Event, state: State, logger: Any) -> None:
            torch.save(pruning.state_dict(), tmp_path / "state.pt")
            saved.append(pruning.state_dict())
            raise KeyboardInterrupt

    saved: list[Any] = []
    trainer.state.algorithms.append(Stop())
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    loaded = torch.load(tmp_path / "state.pt", weights_only=True)
    assert loaded["repr"] == repr(pruning)

    def same(one: Any, other: Any) -> bool:
        if isinstance(one, Tensor):
            return torch.equal(one, other)
        if isinstance(one, dict):
            return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
        if isinstance(one, (list, tuple)):
            return len(one) == len(other) and all(map(same, one, other))
        return one == other

    assert same(loaded, saved[0])
    assert len(loaded["engine"]["measurements"]["ids"]) == 3 * BATCH_SIZE


def test_the_settings_are_logged(folder: str, make_trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    from composer.loggers import InMemoryLogger

    memory = InMemoryLogger()
    make_trainer(folder, [make_ted(0.6, folder=tmp_path)], loggers=[memory], max_duration="2ep").fit()
    logged = memory.hyperparameters
    assert logged["pruning/method"] == "TED"
    assert logged["pruning/prune_ratio"] == 0.6
    assert logged["pruning/output_layer"].endswith("2")


# What a review found


def test_a_fit_after_a_reset_of_time_has_full_epochs(
    folder: str, make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    pruning = make_ted(0.6, annealing=0, folder=tmp_path)
    trainer = make_trainer(folder, [pruning], max_duration="3ep")
    trainer.fit()
    trainer.fit(duration="3ep", reset_time=True)
    assert [record.epoch for record in pruning.records] == [0, 1, 2]
    assert [record.forwarded for record in pruning.records] == [record.kept for record in pruning.records]


def test_a_checkpoint_between_loading_and_fitting_keeps_the_state(
    folder: str, make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    saving = {"save_folder": str(tmp_path / "checkpoints"), "save_interval": "1ep"}
    make_trainer(folder, [make_ted(0.6, folder=tmp_path)], max_duration="2ep", **saving).fit()
    load = str(tmp_path / "checkpoints" / "latest-rank0.pt")
    again = make_ted(0.6, folder=tmp_path)
    assert make_trainer(folder, [again], load_path=load).state.timestamp.epoch == 2
    assert "engine" in again.state_dict()


def test_a_run_that_goes_on_without_scores_warns(
    folder: str, make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    saving = {"save_folder": str(tmp_path / "checkpoints"), "save_interval": "1ep"}
    make_trainer(folder, max_duration="2ep", **saving).fit()
    load = str(tmp_path / "checkpoints" / "latest-rank0.pt")
    with pytest.warns(UserWarning, match="goes on at epoch 2 without scores"):
        make_trainer(folder, [make_ted(0.6, folder=tmp_path)], max_duration="4ep", load_path=load).fit()


def test_an_epoch_that_is_begun_twice_counts_once(
    folder: str, make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    interrupted: list[int] = []

    class Interrupt(Algorithm):
        def match(self, event: Event, state: State) -> bool:
            return event == Event.BATCH_START and state.timestamp.epoch == 2 and not interrupted

        def apply(self, event: Event, state: State, logger: Any) -> None:
            interrupted.append(1)
            raise KeyboardInterrupt

    def run(*others: Algorithm) -> list[Any]:
        pruning = make_ted(0.6, folder=tmp_path / str(len(others)))
        trainer = make_trainer(folder, [pruning, *others], max_duration="4ep")
        if others:
            with pytest.raises(KeyboardInterrupt):
                trainer.fit()
        trainer.fit()
        names = ("epoch", "kept", "returning", "forwarded", "digest")
        return [[getattr(record, name) for name in names] for record in pruning.records]

    assert run(Interrupt()) == run()


def test_an_output_layer_other_than_the_checkpoints_is_refused(
    folder: str, make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    saving = {"save_folder": str(tmp_path / "checkpoints"), "save_interval": "1ep"}
    make_trainer(folder, [make_ted(0.6, folder=tmp_path)], max_duration="2ep", **saving).fit()
    load = str(tmp_path / "checkpoints" / "latest-rank0.pt")
    other = DataPruning(TED(0.6), folder=tmp_path, output_layer="module.0")
    trainer = make_trainer(folder, [other], max_duration="4ep", load_path=load)
    with pytest.raises(ValueError, match=r"(?s)measured at the output layer '.*2'.*'module.0'"):
        trainer.fit()


@pytest.mark.long
def test_a_compiled_model_whose_head_is_registered_first_is_not_measured_elsewhere(
    folder: str, make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    torch.compiler.reset()
    compiled = {"compile_config": {"backend": "aot_eager"}}
    trainer = make_trainer(folder, [make_ted(0.5, folder=tmp_path / "a")], model=HeadFirst(), **compiled)
    with pytest.raises(ValueError, match=r"(?s)compiled model.*'body'.*output_layer"):
        trainer.fit()
    named = DataPruning(TED(0.5), folder=tmp_path / "b", output_layer="head")
    make_trainer(folder, [named], model=HeadFirst(), max_duration="2ep", **compiled).fit()
    assert named.engine.output_layer == "head"


class TwoLosses(HeadFirst):
    """A loss of two entries, as a mapping without a total."""

    def loss(self, outputs: Any, batch: Any) -> Any:
        return {"regulariser": outputs.square().mean(), "task": F.cross_entropy(outputs, batch[1])}


def test_several_losses_are_one(folder: str, make_trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    pruning = make_ted(0.5, folder=tmp_path, importance="loss")
    make_trainer(folder, [pruning], model=TwoLosses(), learning_rate=0.0, max_duration="2ep").fit()
    model = TwoLosses()
    dataset = TupleDataset(local=folder, batch_size=BATCH_SIZE)
    rows = [dataset[index] for index in range(NUM_SAMPLES)]
    outputs = model([torch.stack([torch.tensor(x) for x, _ in rows])])
    labels = torch.tensor([y for _, y in rows])
    expected = outputs.square().mean(1) + F.cross_entropy(outputs, labels, reduction="none")
    torch.testing.assert_close(torch.tensor(pruning.engine.scores()), expected.detach(), rtol=1e-4, atol=1e-6)
