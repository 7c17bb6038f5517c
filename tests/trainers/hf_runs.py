"""Runs of Hugging Face's Trainer on the model, data and seed of loop_runs.py, which the tests share.

Run by itself on the ranks it is launched on: see test_huggingface_on_two_ranks.py.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from loop_runs import EPOCHS, GLOBAL_BATCH_SIZE, METHODS, features, make_net, outcome
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback, TrainingArguments

from ted_stream import TED, PrunedStreamingDataset
from ted_stream.methods import Method
from ted_stream.testing.huggingface_contract import PrunedTrainer, WithLoss


class Dicts(Dataset):
    """The features as mappings."""

    def __init__(self) -> None:
        self.x, self.y = features()

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, at: int) -> dict[str, Tensor]:
        return {"x": self.x[at], "labels": self.y[at]}


class StreamedDicts(PrunedStreamingDataset):
    """The samples of a folder as mappings of float64."""

    def __getitem__(self, at: Any) -> Any:
        sample = super().__getitem__(at)
        return {"x": torch.from_numpy(sample["x"].copy()).double(), "labels": sample["y"]}


def collate(samples: list[Any]) -> dict[str, Tensor]:
    """Knows nothing of sample ids."""
    assert set(samples[0]) == {"x", "labels"}
    return {
        "x": torch.stack([sample["x"] for sample in samples]),
        "labels": torch.tensor([int(sample["labels"]) for sample in samples]),
    }


class Seeded(TrainerCallback):
    """Seeds dropout where a run begins."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        torch.manual_seed(5)


def make_trainer(
    method: Method,
    folder: str,
    *,
    data: str | None = None,
    ranks: int = 1,
    dropout: float = 0.2,
    cls: Callable[..., Any] = PrunedTrainer,
    model: nn.Module | None = None,
    callbacks: list[TrainerCallback] | None = None,
    optimizers: Any = None,
    dataset: Any = None,
    options: dict[str, Any] | None = None,
    **arguments: Any,
) -> Any:
    """A Trainer over the samples, or over a folder of streaming ones; further arguments are TrainingArguments."""
    model = model or WithLoss(make_net(dropout))
    size = GLOBAL_BATCH_SIZE // ranks
    if dataset is None:
        dataset = Dicts() if data is None else StreamedDicts(local=data, shuffle=True, batch_size=size)
    settings = {
        "output_dir": folder,
        "num_train_epochs": EPOCHS,
        "per_device_train_batch_size": size,
        "max_grad_norm": 0,
        "data_seed": 3,
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_strategy": "no",
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
        "run_name": "run",
    } | arguments
    if optimizers is None:
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        rows = settings["per_device_train_batch_size"] * settings.get("gradient_accumulation_steps", 1)
        full = -(-len(dataset) // (rows * ranks))
        optimizers = optimizer, CosineAnnealingLR(optimizer, EPOCHS * full)
    return cls(
        model=model,
        args=TrainingArguments(**settings),
        train_dataset=dataset,
        data_collator=collate,
        optimizers=optimizers,
        callbacks=callbacks,
        pruning=method,
        **(options or {}),
    )


def train(method: Method, folder: str, *, resume: Any = None, **arguments: Any) -> dict[str, Any]:
    """Train, perhaps from a checkpoint."""
    callbacks = [*([] if resume else [Seeded()]), *arguments.pop("callbacks", [])]
    trainer = make_trainer(method, folder, callbacks=callbacks, **arguments)
    trainer.train(resume_from_checkpoint=resume)
    return outcome_of(trainer)


def outcome_of(trainer: Any) -> dict[str, Any]:
    class View:
        records, engine = trainer.pruning_records, trainer.pruning_engine

    return outcome(View, trainer.model) | {"steps": trainer.state.global_step}


def tiny_lm(vocabulary: int = 11) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "vocab_size": vocabulary,
    }
    config = LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=16)
    return LlamaForCausalLM(config).double()


class Texts(Dataset):
    """Rows of 8 tokens, of which the first ones, another number in every row, are no targets."""

    def __init__(self, count: int = 22) -> None:
        torch.manual_seed(1)
        self.ids = torch.randint(0, 11, (count, 8))
        self.labels = self.ids.clone()
        for row in range(count):
            self.labels[row, : row % 6] = -100

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, at: int) -> dict[str, Tensor]:
        return {"input_ids": self.ids[at], "labels": self.labels[at]}


def stack(samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}


def language_scores(folder: str, **arguments: Any) -> list[float]:
    """Of a language model that stays as it is."""
    model = tiny_lm()
    optimizers = torch.optim.SGD(model.parameters(), 0.0), None
    trainer = make_trainer(
        TED(0.6), folder, model=model, dataset=Texts(), optimizers=optimizers, num_train_epochs=2, **arguments
    )
    trainer.data_collator = stack
    trainer.train()
    return trainer.pruning_engine.scores().tolist()


def main(out: str, data: str) -> None:
    """Every method on these ranks, map-style and streaming, and steps of several batches."""
    found: dict[str, Any] = {}
    ranks = int(os.environ["WORLD_SIZE"])
    for name, method in METHODS.items():
        found[name] = train(method, f"{out}/{name}", ranks=ranks, dropout=0.0)
    found["streaming"] = train(METHODS["ted"], f"{out}/streaming", data=data, ranks=ranks, dropout=0.0)
    found["accumulated"] = train(
        METHODS["ted"],
        f"{out}/accumulated",
        ranks=ranks,
        dropout=0.0,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=4,
    )
    found["texts"] = language_scores(f"{out}/texts", per_device_train_batch_size=1, gradient_accumulation_steps=3)
    Path(f"{out}/rank{os.environ['RANK']}.json").write_text(json.dumps(found))
    dist.barrier()


class Die(TrainerCallback):
    """Ends the process as a kill does, at the same step on every rank."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def main_killed(out: str, name: str, die_at: str) -> None:
    """Train with a checkpoint every third step, or go on from the last; die after some steps."""
    folder = Path(out) / name
    result = train(
        METHODS["importance"],
        str(folder),
        ranks=int(os.environ["WORLD_SIZE"]),
        resume=True if list(folder.glob("checkpoint-*")) else None,
        callbacks=[Die(int(die_at))],
        save_strategy="steps",
        save_steps=3,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
    )
    Path(f"{out}/{name}-rank{os.environ['RANK']}.json").write_text(json.dumps(result))
    dist.barrier()


if __name__ == "__main__":
    torch.set_num_threads(1)
    (main_killed if len(sys.argv) > 3 else main)(*sys.argv[1:])
