"""Runs on texts of unequal length, a row for each or packed into rows, whose scores the tests compare.

Run by itself on the ranks it is launched on: see test_packed_batches.py.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from hf_runs import tiny_lm
from loop_runs import leave
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset
from transformers import DataCollatorWithFlattening

from ted_stream import TED, PrunedSampler, Pruner
from ted_stream.methods import Method

NUM_TEXTS, EPOCHS = 22, 2


class Texts(Dataset):
    """Of 3 to 9 tokens, of which the first ones are no targets."""

    def __init__(self, count: int = NUM_TEXTS) -> None:
        generator = torch.Generator().manual_seed(1)
        self.texts = [torch.randint(1, 11, (3 + at % 7,), generator=generator).tolist() for at in range(count)]

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, at: int) -> dict[str, list[int]]:
        text = self.texts[at]
        unseen = 1 + at % 2
        return {"input_ids": text, "labels": [-100] * unseen + text[unseen:]}


def flattened(samples: list[dict[str, list[int]]]) -> dict[str, Tensor]:
    """All in one row."""
    batch: Any = DataCollatorWithFlattening(return_tensors="pt")(samples)
    return batch


def padded(samples: list[dict[str, list[int]]]) -> dict[str, Tensor]:
    """A row for each."""
    length = max(len(sample["labels"]) for sample in samples)
    rows = [[*sample["input_ids"], *[0] * (length - len(sample["labels"]))] for sample in samples]
    labels = [[*sample["labels"], *[-100] * (length - len(sample["labels"]))] for sample in samples]
    attended = [[1] * len(sample["labels"]) + [0] * (length - len(sample["labels"])) for sample in samples]
    names = ("input_ids", "labels", "attention_mask")
    return dict(zip(names, map(torch.tensor, (rows, labels, attended)), strict=True))


def in_two_rows(samples: list[dict[str, list[int]]], first: int = 1) -> dict[str, Tensor]:
    """The first ones in a row, and the others in another; padding has positions that go on."""
    parts = [flattened(part) for part in (samples[:first], samples[first:]) if part]
    length = max(part["labels"].shape[1] for part in parts)
    beyond = [length - part["labels"].shape[1] for part in parts]
    rows = {name: [part[name] for part in parts] for name in ("input_ids", "labels")}
    positions = [
        torch.cat([part["position_ids"], torch.arange(1, 1 + more)[None] + part["position_ids"].max()], 1)
        for part, more in zip(parts, beyond, strict=True)
    ]
    padding = {"input_ids": 0, "labels": -100}
    batch = {
        name: torch.cat([F.pad(row, (0, more), value=padding[name]) for row, more in zip(each, beyond, strict=True)])
        for name, each in rows.items()
    }
    return {**batch, "position_ids": torch.cat(positions)}


def model_of_packed() -> Any:
    """Of transformers' own, which makes attention masks of positions where it has no cache."""
    model = tiny_lm()
    model.config.use_cache = False
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 1 if parameter.ndim < 2 else 10  # far from uniform predictions
    return model


def mean_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Over all targets, in the precision of the logits, which transformers' own is not."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def adapted(model: Any) -> Any:
    """With an adapter that changes nothing yet, all else frozen, the embeddings too."""
    return get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")).double()


def checkpointed(model: Any) -> Any:
    """Adapted, with activations that are computed anew in the backward pass."""
    model.gradient_checkpointing_enable({"use_reentrant": False})
    return adapted(model).train()


def compiled(model: Any) -> Any:
    """Adapted, with a graph."""
    return torch.compile(adapted(model), backend="aot_eager", dynamic=True)


def sharded(model: Any) -> Any:
    """Adapted, under FSDP 2."""
    model = adapted(model)
    for layer in model.base_model.model.model.layers:
        fully_shard(layer)
    fully_shard(model)  # which changes the model's class in place
    return model


def make_loader(collate: Callable[..., Any], size: int = 4, dataset: Dataset | None = None) -> DataLoader:
    """Map-style."""
    dataset = Texts() if dataset is None else dataset
    sampler = PrunedSampler(dataset, seed=3)  # pyright: ignore[reportArgumentType]
    return DataLoader(dataset, batch_size=size, sampler=sampler, collate_fn=collate)


def loop_scores(
    folder: str,
    loader: DataLoader,
    *,
    method: Method | None = None,
    rows: int | None = None,
    wrap: Callable[[nn.Module], nn.Module] = lambda model: model,
) -> list[float]:
    """Of a model that stays as it is, perhaps in parts of so many rows."""
    model = wrap(model_of_packed())
    with Pruner(method or TED(0.6), model, loader, epochs=EPOCHS, folder=folder) as pruner:
        for _ in pruner:
            for batch in pruner.batches():
                for part in pruner.microbatches(batch, rows) if rows else [batch]:
                    inputs = {name: tensor for name, tensor in part.items() if name != "labels"}
                    pruner.loss(mean_loss(model(**inputs).logits, part["labels"])).backward()
    return pruner.engine.scores().tolist()


def main(out: str) -> None:
    """A row for each and one for all, shared out to these ranks, by DDP and FSDP 2, with and without an adapter."""
    dist.init_process_group("gloo")
    runs: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
        "padded": (padded, DistributedDataParallel),
        "flattened": (flattened, DistributedDataParallel),
        "adapted": (flattened, lambda model: DistributedDataParallel(adapted(model))),
        "sharded": (flattened, sharded),
    }
    found = {
        name: loop_scores(f"{out}/{name}", make_loader(collate, 2), wrap=wrap) for name, (collate, wrap) in runs.items()
    }
    Path(f"{out}/rank{dist.get_rank()}.json").write_text(json.dumps(found))
    leave()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
