"""Pruning in Hugging Face's Trainer: it makes what the loop and Composer make, goes on where it was, and refuses."""

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate.state import AcceleratorState
from hf_runs import (
    Dicts,
    PrunedTrainer,
    StreamedDicts,
    Texts,
    WithLoss,
    collate,
    language_scores,
    make_trainer,
    outcome_of,
    stack,
    tiny_lm,
    train,
)
from loop_runs import EPOCHS, GLOBAL_BATCH_SIZE, METHODS, NUM_SAMPLES, make_loader, make_net
from loop_runs import train as loop_train
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, MultiStepLR, OneCycleLR
from torch.utils.data import DataLoader, IterableDataset
from transformers import LlamaForCausalLM, Trainer, TrainerCallback

from ted_stream import TED, PrunedSampler, PruningMixin, read_skip_list
from ted_stream.methods import Method

each_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


# What the loop makes


@pytest.mark.quick("map-style-ted", "streaming-importance")
@each_method
@pytest.mark.parametrize("kind", ["map-style", "streaming"])
def test_makes_the_lists_and_weights_that_the_loop_makes(
    method: Method, kind: str, make_mds: Callable[..., str], tmp_path: Path
) -> None:
    """Which are those that Composer makes: see test_loop.py."""
    data = make_mds(NUM_SAMPLES) if kind == "streaming" else None
    options: dict[str, Any] = {"run_name": "run"}
    expected = loop_train(method, str(tmp_path / "loop"), loader=make_loader(data), pruner_options=options)
    found = train(method, str(tmp_path / "hf"), data=data)
    assert min(found["kept"]) < NUM_SAMPLES
    assert found.pop("steps") == sum(-(-kept // GLOBAL_BATCH_SIZE) for kept in found["kept"])
    assert expected.pop("rate") == pytest.approx(0, abs=1e-12)
    assert found == expected


def test_a_run_folder_by_name(tmp_path: Path) -> None:
    options = {"pruning_folder": tmp_path / "{run_name}"}
    train(METHODS["random"], str(tmp_path / "out"), options=options, run_name="a/b", num_train_epochs=2)
    assert (tmp_path / "a/b/run.json").exists()
    for name in ("../x", "/x"):
        with pytest.raises(ValueError, match=rf"run_name is '{name}', which is no folder within that of folder='"):
            train(METHODS["random"], str(tmp_path / "out"), options=options, run_name=name)


def test_the_run_folder_is_beside_the_checkpoints(tmp_path: Path) -> None:
    found = train(METHODS["ted"], str(tmp_path))
    for epoch, digest in enumerate(found["digests"]):
        skip_list = read_skip_list(tmp_path / f"pruning/skip_lists/ep{epoch:04d}.parquet", digest=digest)
        assert skip_list.num_kept == found["kept"][epoch] == found["forwarded"][epoch]
    assert (tmp_path / "pruning/run.json").exists()
    assert (tmp_path / "pruning/manifest.parquet").exists()


class Logged(TrainerCallback):
    """What the Trainer's callbacks are told, as those of ``report_to`` are."""

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.entries.append({name: value for name, value in logs.items() if name.startswith("pruning/")})


def test_the_metrics_go_to_what_the_trainer_reports_to(tmp_path: Path) -> None:
    logged = Logged()
    trainer = make_trainer(METHODS["ted"], str(tmp_path), callbacks=[logged])
    trainer.train()
    entries = [entry for entry in logged.entries if entry]
    chosen, ended = entries[::2], entries[1::2]
    records = trainer.pruning_records
    assert [entry["pruning/kept_samples"] for entry in chosen] == [record.kept for record in records]
    assert [entry["pruning/kept_ratio"] for entry in chosen] == [record.kept / NUM_SAMPLES for record in records]
    assert [entry["pruning/forwarded_samples"] for entry in ended] == [record.forwarded for record in records]
    assert ended[-1]["pruning/save_ratio"] == trainer.pruning_save_ratio
    assert ended[-1]["pruning/estimated_saved_seconds"] > 0
    kept = [entry["pruning/kept_samples"] for entry in trainer.state.log_history if "pruning/kept_samples" in entry]
    assert kept == [record.kept for record in records]
    assert all(type(value) in (int, float) for entry in entries for value in entry.values())


def test_evaluation_within_an_epoch_is_no_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left_out: list[float] = []
    monkeypatch.setattr("ted_stream.engine.pace.Pace.leave_out", lambda self, seconds: left_out.append(seconds))
    steps = {"eval_strategy": "steps", "eval_steps": 5, "num_train_epochs": 2}

    def make(**arguments: Any) -> Trainer:
        return PrunedTrainer(eval_dataset=Dicts(), **arguments)

    trainer = make_trainer(METHODS["random"], str(tmp_path), cls=make, **steps)
    trainer.train()
    found = [entry["eval_runtime"] for entry in trainer.state.log_history if "eval_runtime" in entry]
    assert left_out == found
    assert len(found) == trainer.state.global_step // 5 > 0


def test_a_dataset_that_was_looked_at_before(make_mds: Callable[..., str], tmp_path: Path) -> None:
    """As some trainers do to learn its columns, which begins an epoch of a streaming one."""
    data = make_mds(NUM_SAMPLES)
    expected = train(METHODS["ted"], str(tmp_path / "a"), data=data)
    dataset = StreamedDicts(local=data, shuffle=True, batch_size=GLOBAL_BATCH_SIZE)
    next(iter(dataset))
    assert train(METHODS["ted"], str(tmp_path / "b"), dataset=dataset) == expected


# Steps of several batches


def mask_gradients(model: LlamaForCausalLM, data: Texts) -> list[float]:
    """|∂ℓ/∂δ| of every sample by itself, with its mask at what enters the head."""
    values = []
    for at in range(len(data)):
        delta = torch.ones((), dtype=torch.float64, requires_grad=True)
        hidden = model.model(data.ids[at : at + 1]).last_hidden_state * delta
        loss = F.cross_entropy(model.lm_head(hidden)[0, :-1], data.labels[at, 1:])
        values.append(abs(float(torch.autograd.grad(loss, delta)[0])))
    return values


@pytest.mark.parametrize(("batch_size", "accumulation"), [(4, 1), (4, 3), (1, 5)])
def test_a_score_does_not_hang_on_the_step(batch_size: int, accumulation: int, tmp_path: Path) -> None:
    """Whatever the number of targets that the Trainer has the loss divided by; in an epoch's last step too."""
    data = Texts()
    arguments = {"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": accumulation}
    scores, expected = language_scores(str(tmp_path), **arguments), mask_gradients(tiny_lm(), data)
    kept = read_skip_list(tmp_path / "pruning/skip_lists/ep0001.parquet").kept_ids(np.dtype(np.int64))
    assert len(kept) < len(data)
    ratios = [score / value for score, value in zip(scores, expected, strict=True)]
    assert ratios == pytest.approx([ratios[0]] * len(data), rel=1e-6)


def test_a_step_is_that_of_all_its_batches(tmp_path: Path) -> None:
    """The weights after accumulated gradients are those of large batches; in an epoch's last step too."""
    # 44 samples make 11 batches of 4 and 3 steps of 4 batches, the last of 3; or 3 batches of 16.
    outcomes = [
        train(METHODS["random"], str(tmp_path / str(size)), per_device_train_batch_size=size,
              gradient_accumulation_steps=accumulation, dropout=0.0)
        for size, accumulation in ((GLOBAL_BATCH_SIZE, 1), (GLOBAL_BATCH_SIZE // 4, 4))
    ]  # fmt: skip
    large, accumulated = outcomes
    assert accumulated["kept"] == large["kept"]
    assert accumulated["digests"] == large["digests"]
    assert accumulated["steps"] == large["steps"]


# Going on


class Stop(Exception):
    pass


class Kill(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise Stop


KINDS = ["map-style", "streaming", "workers", "accumulated"]
# Each way once, by one that measures or one that weighs; the others go the same ways.
QUICK = {("map-style", "ted"), ("streaming", "importance"), ("workers", "ted"), ("accumulated", "importance")}
WAYS = [
    pytest.param(method, kind, id=f"{kind}-{name}", marks=[] if (kind, name) in QUICK else pytest.mark.long)
    for name, method in METHODS.items()
    for kind in KINDS
]


@pytest.mark.quick("map-style-ted")
@pytest.mark.parametrize(("method", "kind"), WAYS)
def test_goes_on_to_the_bit(method: Method, kind: str, make_mds: Callable[..., str], tmp_path: Path) -> None:
    """From within an epoch, its last step, and its end; by its checkpoints alone."""
    arguments: dict[str, Any] = {"data": make_mds(NUM_SAMPLES)} if kind == "streaming" else {}
    if kind == "workers":
        arguments = {"dataloader_num_workers": 2, "dataloader_persistent_workers": True}
    if kind == "accumulated":
        arguments = {"gradient_accumulation_steps": 3, "per_device_train_batch_size": 4}
    saving = {"save_strategy": "steps", "save_steps": 1}
    expected = train(method, str(tmp_path), **saving, **arguments)
    found = sorted(int(path.name.removeprefix("checkpoint-")) for path in tmp_path.glob("checkpoint-*"))
    assert found == list(range(1, expected["steps"] + 1)), "the last one too"
    per_epoch = -(-NUM_SAMPLES // (12 if kind == "accumulated" else GLOBAL_BATCH_SIZE))
    for step in (1, per_epoch, per_epoch + 1, per_epoch + 3, found[-1]) if kind != "workers" else (per_epoch + 2,):
        found_again = train(method, str(tmp_path), resume=str(tmp_path / f"checkpoint-{step}"), **arguments)
        assert found_again == expected, f"from step {step}"


@pytest.mark.long
def test_goes_on_from_epochs_ends(tmp_path: Path) -> None:
    expected = train(METHODS["ted"], str(tmp_path), save_strategy="epoch")
    for path in tmp_path.glob("checkpoint-*"):
        assert train(METHODS["ted"], str(tmp_path), resume=str(path)) == expected


@pytest.mark.long
def test_goes_on_after_an_error(tmp_path: Path) -> None:
    expected = train(METHODS["ted"], str(tmp_path / "lived"))
    saving = {"save_strategy": "steps", "save_steps": 4, "save_total_limit": 1}
    dataset = Dicts()
    with pytest.raises(Stop):
        train(METHODS["ted"], str(tmp_path / "died"), callbacks=[Kill(18)], dataset=dataset, **saving)
    assert train(METHODS["ted"], str(tmp_path / "died"), resume=True, **saving) == expected
    states: list[float] = []

    class Epochs(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            states.append(state.epoch)

    train(METHODS["ted"], str(tmp_path / "whole"), callbacks=[Epochs()])
    whole, states = states, []
    shutil.rmtree(tmp_path / "died")
    with pytest.raises(Stop):
        train(METHODS["ted"], str(tmp_path / "died"), callbacks=[Kill(18)], **saving)
    train(METHODS["ted"], str(tmp_path / "died"), resume=True, callbacks=[Epochs()])
    assert states == whole[16:], "the epoch that the Trainer shows"


@pytest.mark.parametrize("missing", ["pruning.pt", "trainer_state.json"])
def test_a_checkpoint_without_our_state_is_refused(missing: str, tmp_path: Path) -> None:
    train(METHODS["ted"], str(tmp_path), save_strategy="epoch")
    checkpoint = tmp_path / "checkpoint-13"
    (checkpoint / missing).unlink()
    with pytest.raises((ValueError, FileNotFoundError), match=missing):
        train(METHODS["ted"], str(tmp_path), resume=str(checkpoint))


def test_another_run_does_not_go_on(tmp_path: Path) -> None:
    train(METHODS["ted"], str(tmp_path), save_strategy="steps", save_steps=5)
    checkpoint = str(tmp_path / "checkpoint-15")
    with pytest.raises(ValueError, match=r"made by TED\(.*but this run has InfoBatch"):
        train(METHODS["infobatch"], str(tmp_path), resume=checkpoint)
    with pytest.raises(ValueError, match=r"progress='samples'.*progress='epochs'"):
        train(METHODS["ted"], str(tmp_path), resume=checkpoint, options={"pruning_progress": "epochs"})
    with pytest.raises(ValueError, match=r"middle of epoch 1.*seed \(3 and 4\)"):
        train(METHODS["ted"], str(tmp_path), resume=checkpoint, data_seed=4)
    with pytest.raises(ValueError, match=r"made after 1 epochs and 2 batches, but the run is to end after 1: "):
        train(METHODS["ted"], str(tmp_path), resume=checkpoint, num_train_epochs=1)


# The learning rate

FULL = -(-NUM_SAMPLES // GLOBAL_BATCH_SIZE)  # steps of a full epoch


def rates(folder: Path, **arguments: Any) -> tuple[list[float], list[int]]:
    """The learning rate of every step, and the steps of every epoch."""
    seen: list[float] = []
    epochs: list[int] = []

    class Rates(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            seen.append(kwargs["optimizer"].param_groups[0]["lr"])
            epochs.append(int(state.epoch))

    trainer = make_trainer(METHODS["ted"], str(folder), callbacks=[Rates()], **arguments)
    trainer.train()
    return seen, [epochs.count(epoch) for epoch in range(EPOCHS)]


def warm_up(at: float, total: int) -> float:
    return min(1.0, at / 6)


def linear(at: float, total: int) -> float:
    return at / 6 if at < 6 else (total - at) / (total - 6)


def cosine(at: float, total: int) -> float:
    return at / 6 if at < 6 else 0.5 + 0.5 * math.cos(math.pi * (at - 6) / (total - 6))


CLOSED_FORMS: dict[str, tuple[dict[str, Any], Callable[[float, int], float]]] = {
    "linear": ({"warmup_steps": 6}, linear),
    "cosine": ({"warmup_steps": 6}, cosine),
    "constant_with_warmup": ({"warmup_steps": 6}, warm_up),
    "polynomial": ({"lr_scheduler_kwargs": {"power": 2.0, "lr_end": 0.0}}, lambda at, total: (1 - at / total) ** 2),
}


@pytest.mark.quick("linear-8-1", "cosine-3-3")
@pytest.mark.parametrize(("batch_size", "accumulation"), [(8, 1), (3, 3)])
@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_the_rate_of_the_trainers_own_schedulers(name: str, batch_size: int, accumulation: int, tmp_path: Path) -> None:
    """At every step that of a full-data run which is equally far in its epoch."""
    arguments, closed_form = CLOSED_FORMS[name]
    model = WithLoss(make_net())
    seen, steps = rates(
        tmp_path,
        model=model,
        optimizers=(torch.optim.SGD(model.parameters(), 0.5), None),
        lr_scheduler_type=name,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        options={"pruning_progress": "epochs"},
        **arguments,
    )
    full = math.ceil(math.ceil(NUM_SAMPLES / batch_size) / accumulation)
    assert steps[0] == full > min(steps)
    positions = [epoch * full + done * full / count for epoch, count in enumerate(steps) for done in range(count)]
    assert seen == pytest.approx([0.5 * closed_form(at, EPOCHS * full) for at in positions], abs=1e-12)


@pytest.mark.parametrize("name", ["one cycle", "milestones", "by a function"])
def test_the_rate_of_schedulers_of_ones_own(name: str, tmp_path: Path) -> None:
    model = WithLoss(make_net())
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    make = {
        "one cycle": lambda it: OneCycleLR(it, max_lr=0.3, total_steps=5 * FULL),
        "milestones": lambda it: MultiStepLR(it, [20, 40]),
        "by a function": lambda it: LambdaLR(it, lambda at: 1 / (1 + at)),
    }[name]
    options = {"pruning_progress": "epochs"}
    seen, steps = rates(tmp_path, model=model, optimizers=(optimizer, make(optimizer)), options=options)
    reference = make(torch.optim.SGD(make_net().parameters(), 0.1))
    for epoch, count in enumerate(steps):
        for done in range(count):
            at = epoch * FULL + done * FULL / count
            if name != "by a function":
                reference.step(at)  # pyright: ignore[reportArgumentType]
            expected = 0.1 / (1 + at) if name == "by a function" else reference.get_last_lr()[0]
            assert seen[sum(steps[:epoch]) + done] == pytest.approx(expected, abs=1e-9), (epoch, done)


def test_progress_is_by_samples(tmp_path: Path) -> None:
    model = WithLoss(make_net())
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    scheduler = LambdaLR(optimizer, lambda at: 1 - at / (5 * FULL))
    seen, steps = rates(tmp_path, model=model, optimizers=(optimizer, scheduler))
    kept = [record["kept"] for record in json.loads((tmp_path / "pruning/run.json").read_text())["epochs"]]
    shares = [
        (sum(kept[:epoch]) + kept[epoch] * done / count) / sum(kept)
        for epoch, count in enumerate(steps)
        for done in range(count)
    ]
    assert seen == pytest.approx([0.5 * (1 - share) for share in shares], abs=1e-12)


@pytest.mark.long
def test_the_trainer_knows_how_long_the_run_is(tmp_path: Path) -> None:
    lengths: list[int] = []

    class Lengths(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            lengths.append(state.max_steps)

    for name, method in METHODS.items():
        trainer = make_trainer(method, str(tmp_path / name), callbacks=[Lengths()])
        result = trainer.train()
        assert trainer.state.max_steps == trainer.state.global_step
        assert (lengths[-1] == trainer.state.max_steps) == (name != "infobatch"), "which decides as it goes"
        forwarded = sum(record.forwarded for record in trainer.pruning_records)
        if name != "infobatch":
            samples = result.metrics["train_samples_per_second"] * result.metrics["train_runtime"]
            assert samples == pytest.approx(forwarded, rel=0.01)


# What people do with a Trainer


@pytest.mark.long
def test_losses_of_ones_own(tmp_path: Path) -> None:
    """A compute_loss beside the mixin, a function for the loss: the samples are measured all the same."""

    class Own(PrunedTrainer):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
            outputs = model(**inputs)
            loss = F.cross_entropy(outputs["logits"], inputs["labels"])
            return (loss, outputs) if return_outputs else loss

    expected = train(METHODS["ted"], str(tmp_path / "a"), dropout=0.0)
    assert train(METHODS["ted"], str(tmp_path / "b"), cls=Own, dropout=0.0) == expected

    class Positional(PrunedTrainer):
        def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
            compute_loss = self.compute_loss
            vars(self)["compute_loss"] = lambda model, inputs, **given: compute_loss(
                model, inputs, False, given.get("num_items_in_batch")
            )
            try:
                return super().training_step(model, inputs, num_items_in_batch)
            finally:
                vars(self)["compute_loss"] = compute_loss

    assert train(METHODS["ted"], str(tmp_path / "d"), cls=Positional, dropout=0.0) == expected

    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = make_net(0.0)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"logits": self.net(x)}

    def loss_function(outputs: Any, labels: Tensor, num_items_in_batch: Any) -> Tensor:
        return F.cross_entropy(outputs["logits"], labels, reduction="sum") / num_items_in_batch

    def with_function(**arguments: Any) -> Any:
        return PrunedTrainer(compute_loss_func=loss_function, **arguments)

    found = train(METHODS["ted"], str(tmp_path / "c"), cls=with_function, model=Logits())
    assert found["weights"] == pytest.approx(expected["weights"], rel=1e-9)
    assert found["digests"] == expected["digests"]


def test_evaluating_in_between_changes_nothing(tmp_path: Path) -> None:
    # Without dropout: reading the evaluation's data draws from the generator.
    expected = train(METHODS["ted"], str(tmp_path / "a"), dropout=0.0)

    def with_evaluation(**arguments: Any) -> Any:
        return PrunedTrainer(eval_dataset=Dicts(), **arguments)

    found = train(
        METHODS["ted"],
        str(tmp_path / "b"),
        cls=with_evaluation,
        eval_strategy="steps",
        eval_steps=3,
        eval_on_start=True,
        dropout=0.0,
    )
    assert found == expected


def test_the_loss_that_is_logged_is_that_of_the_samples(tmp_path: Path) -> None:
    """Not multiplied by what pruning multiplies its gradient by."""
    model = WithLoss(make_net(0.0))
    losses = {}
    for name, correction in (("corrected", True), ("plain", False)):
        trainer = make_trainer(
            TED(0.6, loss_correction=correction),
            str(tmp_path / name),
            model=model,
            optimizers=(torch.optim.SGD(model.parameters(), 0.0), None),
            logging_strategy="epoch",
        )
        trainer.train()
        losses[name] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses["plain"]) == EPOCHS
    assert losses["corrected"] == losses["plain"]


def test_stopping_early(tmp_path: Path) -> None:
    """The run folder is complete, the dataset whole, the model without hooks."""

    class StopAt(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = state.global_step == 16

    trainer = make_trainer(METHODS["ted"], str(tmp_path), callbacks=[StopAt()], save_strategy="best",
                           metric_for_best_model="loss")  # fmt: skip
    trainer.train()
    assert [record.forwarded for record in trainer.pruning_records] == [NUM_SAMPLES, 24]
    assert (tmp_path / "pruning/manifest.parquet").exists()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in trainer.model.modules())
    assert "compute_loss" not in vars(trainer)
    assert len(trainer.get_train_dataloader()) == FULL


def test_stopping_an_epoch_is_refused(tmp_path: Path) -> None:
    class StopAt(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_epoch_stop = state.global_step == 16

    with pytest.raises(RuntimeError, match="Epoch 1 was stopped with 4 batches left"):
        train(METHODS["ted"], str(tmp_path), callbacks=[StopAt()])


@pytest.mark.long
def test_out_of_memory_with_auto_find_batch_size(tmp_path: Path) -> None:
    """The run begins again with smaller batches, as if it had had them from the start."""

    class Full(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.train_batch_size > 8:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    trainer = make_trainer(METHODS["ted"], str(tmp_path), per_device_train_batch_size=16, auto_find_batch_size=True,
                           callbacks=[Full()])  # fmt: skip
    trainer.train()
    found = outcome_of(trainer)
    assert trainer.state.train_batch_size <= 8
    assert found["forwarded"] == found["kept"]
    assert min(found["kept"]) < NUM_SAMPLES


@pytest.fixture
def fresh_accelerate(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Accelerate keeps precision and compilation for the process, and for the next Trainer in it."""
    for name in [name for name in os.environ if name.startswith("ACCELERATE_")]:
        monkeypatch.delenv(name)
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    for name in [name for name in os.environ if name.startswith("ACCELERATE_")]:
        del os.environ[name]
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.quick("ted-bf16", "importance-gradient checkpointing", "ted-label smoothing")
@pytest.mark.usefixtures("fresh_accelerate")
@pytest.mark.parametrize("setting", ["bf16", "gradient checkpointing", "label smoothing", "compiled"])
@pytest.mark.parametrize("method", ["ted", "importance"])
def test_settings_of_the_trainer(method: str, setting: str, tmp_path: Path) -> None:
    """They measure as without, within rounding."""
    arguments: dict[str, Any] = {
        "bf16": {"bf16": True},
        "compiled": {"torch_compile": True, "torch_compile_backend": "aot_eager"},
        "gradient checkpointing": {
            "gradient_checkpointing": True,
            "gradient_checkpointing_kwargs": {"use_reentrant": False},
        },
        "label smoothing": {"label_smoothing_factor": 0.1},
    }[setting]
    scores = []
    for name, options in (("without", {}), ("with", arguments)):
        AcceleratorState._reset_state(reset_partial_state=True)
        model = tiny_lm().float()
        trainer = make_trainer(
            METHODS[method],
            str(tmp_path / name),
            model=model,
            dataset=Texts(),
            optimizers=(torch.optim.SGD(model.parameters(), 0.0), None),
            num_train_epochs=2,
            **options,
        )
        trainer.data_collator = stack
        trainer.train()
        scores.append(trainer.pruning_engine.scores())
    within = {"bf16": 0.1, "label smoothing": 0.3}.get(setting, 1e-4)
    assert scores[1] == pytest.approx(scores[0], rel=within, abs=within * float(np.nanmean(scores[0])))


# Wrong use


class Numbers(IterableDataset):
    def __iter__(self) -> Any:
        return iter([])


def refusals() -> dict[str, tuple[dict[str, Any], str]]:
    return {
        "max_steps": ({"max_steps": 10}, "max_steps is 10.*num_train_epochs"),
        "part of an epoch": ({"num_train_epochs": 2.5}, "num_train_epochs is 2.5.*whole"),
        "group_by_length": ({"group_by_length": True}, "group_by_length=True"),
        "dataloader_drop_last": ({"dataloader_drop_last": True}, "dataloader_drop_last=True"),
        "split_batches": ({"accelerator_config": {"split_batches": True}}, "split_batches=True"),
        "dispatch_batches": ({"accelerator_config": {"dispatch_batches": True}}, "dispatch_batches=True"),
        "tokens per second": ({"include_tokens_per_second": True}, "include_num_input_tokens_seen"),
        "an iterable dataset": ({"dataset": Numbers(), "max_steps": 9}, "Numbers, an iterable dataset"),
        "too few samples": ({"dataset": []}, "empty"),
    }


@pytest.mark.parametrize("name", refusals())
def test_wrong_settings_are_refused_before_the_first_batch(name: str, tmp_path: Path) -> None:
    arguments, message = refusals()[name]
    model = WithLoss(make_net())
    before = [parameter.clone() for parameter in model.parameters()]
    optimizers = torch.optim.SGD(model.parameters(), 0.1), None
    trainer = make_trainer(METHODS["ted"], str(tmp_path), **{"model": model, "optimizers": optimizers} | arguments)
    with pytest.raises(ValueError, match=message):
        trainer.train()
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
    assert not (tmp_path / "pruning").exists()


def test_a_loader_behind_our_back_is_refused(tmp_path: Path) -> None:
    class Prepared(PrunedTrainer):
        def get_train_dataloader(self) -> Any:
            return self.accelerator.prepare(super().get_train_dataloader())

    class Own(PrunedTrainer):
        def get_train_dataloader(self) -> Any:
            return self.accelerator.prepare(DataLoader(Dicts(), batch_size=8, collate_fn=collate))

    with pytest.raises(ValueError, match="not that of PruningMixin"):
        train(METHODS["ted"], str(tmp_path / "own"), cls=Own)
    expected = train(METHODS["ted"], str(tmp_path / "a"))
    assert train(METHODS["ted"], str(tmp_path / "b"), cls=Prepared) == expected, "accelerate leaves it as it is"


def test_a_sampler_of_ones_own_is_refused(tmp_path: Path) -> None:
    class Own(PrunedTrainer):
        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return torch.utils.data.RandomSampler(Dicts())

    with pytest.raises(ValueError, match="PrunedSampler"):
        train(METHODS["ted"], str(tmp_path), cls=Own)


def test_a_trainer_that_samples_by_itself_is_refused() -> None:
    """Behind the mixin, where its sampler would not be asked for."""

    class Balanced(Trainer):
        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return torch.utils.data.WeightedRandomSampler([1.0], 1)

    with pytest.raises(TypeError, match=r"Balanced chooses samples by a _get_train_sampler\(\) of its own"):

        class Pruned(PruningMixin, Balanced):
            pass


def test_checkpoints_without_our_state_are_refused_when_they_are_written(tmp_path: Path) -> None:
    class Own(PrunedTrainer):
        def _save_checkpoint(self, model: Any, trial: Any) -> None:
            (tmp_path / f"checkpoint-{self.state.global_step}").mkdir()

    with pytest.raises(RuntimeError, match="checkpoint-3 was written without the state of the pruning"):
        train(METHODS["ted"], str(tmp_path), cls=Own, save_strategy="steps", save_steps=3)


def test_a_step_of_ones_own_is_refused(tmp_path: Path) -> None:
    class Own(PrunedTrainer):
        def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
            loss: Any = self.compute_loss(model, inputs)
            loss.backward()
            return loss.detach()

    model = WithLoss(make_net())
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(RuntimeError, match="read for this step and not measured"):
        train(METHODS["ted"], str(tmp_path), cls=Own, model=model)
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


def test_pairs_of_rows_are_refused(tmp_path: Path) -> None:
    """As trainers for preferences have them."""

    class Pairs(PrunedTrainer):
        def compute_loss(self, model: Any, inputs: Any, **kwargs: Any) -> Tensor:
            return model(**{name: torch.cat([tensor, tensor]) for name, tensor in inputs.items()})["loss"]

    with pytest.raises(ValueError, match="pairs of rows"):
        train(METHODS["ted"], str(tmp_path), cls=Pairs)


def test_evaluating_on_streamed_training_data_is_refused(make_mds: Callable[..., str], tmp_path: Path) -> None:
    dataset = StreamedDicts(local=make_mds(NUM_SAMPLES), shuffle=True, batch_size=GLOBAL_BATCH_SIZE)

    def evaluating(**arguments: Any) -> Any:
        return PrunedTrainer(eval_dataset=dataset, **arguments)

    with pytest.raises(ValueError, match="evaluate on is the training dataset"):
        train(METHODS["ted"], str(tmp_path), cls=evaluating, dataset=dataset)


@pytest.mark.parametrize("where", ["before", "after", "backward"])
def test_a_pass_over_other_rows_is_refused(where: str, tmp_path: Path) -> None:
    """Which would be taken for the samples."""

    class Replay(PrunedTrainer):
        def compute_loss(self, model: Any, inputs: Any, **kwargs: Any) -> Any:
            other = {"x": torch.ones_like(inputs["x"]), "labels": inputs["labels"]}
            loss = model(**inputs)["loss"] if where == "after" else 0
            replayed = model(**other)["loss"]
            if where == "backward":
                replayed.backward()
                replayed = 0
            return replayed + (loss if where == "after" else model(**inputs)["loss"])

    with pytest.raises(ValueError, match="2 forward passes of as many rows as the batch"):
        train(METHODS["ted"], str(tmp_path), cls=Replay)


@pytest.mark.parametrize("event", ["on_train_begin", "on_epoch_begin"])
def test_a_look_at_a_batch_is_refused(event: str, tmp_path: Path) -> None:
    """Which would be missing from the epoch."""

    def look(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        next(iter(kwargs["train_dataloader"]))

    callback = type("Look", (TrainerCallback,), {event: look})()
    with pytest.raises(RuntimeError, match="iterated outside of an epoch, or twice in one"):
        train(METHODS["ted"], str(tmp_path), callbacks=[callback])


def test_another_loader_of_the_run_is_refused(tmp_path: Path) -> None:
    class Look(TrainerCallback):
        def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            trainer.get_train_dataloader()

    trainer = make_trainer(METHODS["ted"], str(tmp_path), callbacks=[Look()])
    with pytest.raises(RuntimeError, match=r"get_train_dataloader\(\) was called while training"):
        trainer.train()


def test_predicting_on_streamed_training_data_is_refused(make_mds: Callable[..., str], tmp_path: Path) -> None:
    class Predict(TrainerCallback):
        def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            trainer.predict(trainer.train_dataset)

    trainer = make_trainer(METHODS["ted"], str(tmp_path), data=make_mds(NUM_SAMPLES), callbacks=[Predict()])
    with pytest.raises(ValueError, match="evaluate on is the training dataset"):
        trainer.train()


@pytest.mark.long
def test_schedulers_that_are_made_elsewhere(tmp_path: Path) -> None:
    """They are of the full run; or refused, where the mixin does not come to see them."""
    made: list[int] = []
    made_by: list[type] = []

    def create(self: Any, num_training_steps: int, optimizer: Any = None) -> Any:
        made.append(num_training_steps)
        self.lr_scheduler = LambdaLR(self.optimizer, lambda at: 1 - at / num_training_steps)
        return self.lr_scheduler

    def trainer_of(*bases: type) -> Any:
        model = WithLoss(make_net())
        optimizers = torch.optim.SGD(model.parameters(), 0.1), None
        cls, folder = type("Own", bases, {}), str(tmp_path / str(len(made_by)))
        made_by.append(cls)
        return make_trainer(METHODS["infobatch"], folder, cls=cls, model=model, optimizers=optimizers)

    one = type("One", (Trainer,), {"create_scheduler": create})
    both = type("Both", (Trainer,), {"create_optimizer_and_scheduler": create})
    for bases in (
        (PruningMixin, one),
        (PruningMixin, both),
        (type("Front", (PrunedTrainer,), {"create_scheduler": create}),),
    ):
        trainer = trainer_of(*bases)
        trainer.train()
        assert made.pop() == EPOCHS * FULL
        assert trainer.lr_scheduler.get_last_lr() == [pytest.approx(0, abs=1e-12)]
    with pytest.raises(ValueError, match="learning-rate scheduler is not that of PruningMixin"):
        trainer_of(type("Front", (PrunedTrainer,), {"create_optimizer_and_scheduler": create})).train()


def test_a_mean_of_ones_own_where_the_count_does_not_tell(tmp_path: Path) -> None:
    """In the first step the other batch has no targets, so that the mean is the sum by the Trainer's count as well."""

    class Mean(PrunedTrainer):
        def compute_loss(self, model: Any, inputs: Any, num_items_in_batch: Any = None, **kwargs: Any) -> Tensor:
            return model(**inputs).loss

    class Sparse(Texts):
        def __getitem__(self, at: int) -> dict[str, Tensor]:
            row = super().__getitem__(at)
            silent = at in order[2:4]
            return row | {"labels": torch.full_like(row["labels"], -100)} if silent else row

    order = list(PrunedSampler(Texts(), seed=3))
    model, data = tiny_lm(), Sparse()
    trainer = make_trainer(
        TED(0.6),
        str(tmp_path),
        cls=Mean,
        model=model,
        dataset=data,
        optimizers=(torch.optim.SGD(model.parameters(), 0.0), None),
        num_train_epochs=2,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
    )
    trainer.data_collator = stack
    trainer.train()
    scores, expected = trainer.pruning_engine.scores(), mask_gradients(tiny_lm(), Texts())
    ratios = [scores[at] / expected[at] for at in order if at not in order[2:4]]
    assert ratios == pytest.approx([ratios[0]] * len(ratios), rel=1e-6)


def test_the_mixin_comes_first() -> None:
    with pytest.raises(TypeError, match=r"Put it in front: class Wrong\(PruningMixin, Trainer\)"):

        class Wrong(Trainer, PruningMixin):  # pyright: ignore[reportGeneralTypeIssues]
            pass


def test_wrong_arguments(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="it must be a pruning method"):
        make_trainer(0.7, str(tmp_path))  # pyright: ignore[reportArgumentType]
    for option, value in {"pruning_seed": 1.5, "pruning_progress": "steps", "pruning_folder": ""}.items():
        with pytest.raises((TypeError, ValueError), match=option.removeprefix("pruning_")):
            make_trainer(METHODS["ted"], str(tmp_path), options={option: value})
