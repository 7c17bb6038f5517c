"""Runs of the plain loop and of Composer on the same model, data and seed, which the tests of the loop share.

Run by itself on the ranks it is launched on: see test_loop_on_two_ranks.py.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader, TensorDataset

from ted_stream import TED, ImportanceSampling, InfoBatch, PrunedSampler, Pruner, RandomPruning
from ted_stream.methods import Method

NUM_SAMPLES, EPOCHS, GLOBAL_BATCH_SIZE = 101, 5, 8
SIZES = np.random.default_rng(0).integers(1, 500, NUM_SAMPLES)
METHODS: dict[str, Method] = {
    "ted": TED(0.6),
    "random": RandomPruning(0.5),
    "infobatch": InfoBatch(0.5),
    "importance": ImportanceSampling(0.5),
}


class Net(nn.Module):
    def __init__(self, dropout: float = 0.2) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(dropout))
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def make_net(dropout: float = 0.2) -> Net:
    torch.manual_seed(0)
    return Net(dropout).double()


def features() -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, NUM_SAMPLES)
    x = np.random.default_rng(1).normal(size=(3, 6))[y] + rng.normal(size=(NUM_SAMPLES, 6))
    return torch.from_numpy(x), torch.from_numpy(y)


def make_loader(data: str | None = None, ranks: int = 1, **options: Any) -> DataLoader:
    """Over map-style samples, or a folder of streaming ones."""
    size = GLOBAL_BATCH_SIZE // ranks
    if data is not None:
        from streamed import Streamed  # which takes seconds to import, and most of these processes do without

        return DataLoader(Streamed(local=data, shuffle=True, batch_size=size), batch_size=size, **options)
    dataset = TensorDataset(*features())
    return DataLoader(dataset, batch_size=size, sampler=PrunedSampler(dataset, seed=3), **options)


def weights_of(model: nn.Module) -> list[float]:
    whole = [p.full_tensor() if isinstance(p, DTensor) else p for p in model.parameters()]
    return torch.cat([p.detach().flatten() for p in whole]).tolist()


def outcome(pruner: Any, model: nn.Module) -> dict[str, Any]:
    """What equal runs have in common."""
    return {
        "digests": [record.digest for record in pruner.records],
        "kept": [record.kept for record in pruner.records],
        "forwarded": [record.forwarded for record in pruner.records],
        "scores": np.nan_to_num(pruner.engine.scores(), nan=-1).tolist(),
        "weights": weights_of(model),
    }


def assert_kept_as_by_one_process(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Until two ranks share out an odd number of samples, of which one is trained on twice."""
    for epoch, kept in enumerate(expected["kept"]):
        assert found["kept"][epoch] == kept
        assert found["digests"][epoch] == expected["digests"][epoch]
        assert found["forwarded"][epoch] == kept + kept % 2
        if kept % 2:
            return
    assert found["weights"] == pytest.approx(expected["weights"], rel=1e-9)


def train(
    method: Method,
    folder: str,
    *,
    loader: DataLoader | None = None,
    wrap: Callable[[nn.Module], nn.Module] = lambda model: model,
    dropout: float = 0.2,
    resume: dict[str, Any] | None = None,
    after_batch: Callable[[int, Callable[[], dict[str, Any]]], None] = lambda batch, state: None,
    pruner_options: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Train with the plain loop.

    Args:
        method: that prunes.
        folder: of the run.
        loader: of the training set.
        wrap: makes of the model what the loop calls.
        dropout: of the model.
        resume: what ``state`` gave.
        after_batch: is told the number of batches so far, and how to get all that a run must know to go on.
        pruner_options: of the Pruner.
    """
    model = wrap(make_net(dropout))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    loader = loader or make_loader()
    pruner = Pruner(method, model, loader, epochs=EPOCHS, folder=folder, **(pruner_options or {}))
    cosine = CosineAnnealingLR(optimizer, EPOCHS * pruner.full_length)
    scheduler = pruner.stretch(cosine)
    parts: dict[str, Any] = {"model": model, "optimizer": optimizer, "scheduler": cosine, "pruner": pruner}
    for name, part in parts.items():
        if resume is not None:
            part.load_state_dict(resume[name])
    if resume is None:
        torch.manual_seed(5)  # of dropout
    batches = 0
    with pruner:
        for _ in pruner:
            for x, y in pruner.batches():
                loss = pruner.loss(F.cross_entropy(model(x), y))
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                scheduler.step()
                batches += 1
                after_batch(batches, lambda: {name: part.state_dict() for name, part in parts.items()})
    return outcome(pruner, model) | {"rate": optimizer.param_groups[0]["lr"]}


def wrappers() -> dict[str, Callable[[nn.Module], nn.Module]]:
    def sharded(model: nn.Module) -> nn.Module:
        assert isinstance(model, Net)
        fully_shard(model.body)
        fully_shard(model)  # which changes the model's class in place
        return model

    return {"ddp": DistributedDataParallel, "fsdp": sharded}


def main(out: str, data: str) -> None:
    """Every method on these ranks, by DDP and FSDP2, map-style and streaming; and a run that dies, or goes on."""
    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    found: dict[str, Any] = {}
    for name, wrap in wrappers().items():
        for method in METHODS if name == "ddp" else ("ted", "importance"):
            run = f"{name}-{method}"
            found[run] = train(METHODS[method], f"{out}/{run}", loader=make_loader(ranks=ranks), wrap=wrap, dropout=0.0)
    run = "ddp-streaming"
    loader = make_loader(data, ranks)
    found[run] = train(METHODS["ted"], f"{out}/{run}", loader=loader, wrap=DistributedDataParallel, dropout=0.0)
    run, positions = "ddp-sizes", []
    found[run] = train(
        METHODS["ted"],
        f"{out}/{run}",
        loader=make_loader(ranks=ranks),
        wrap=DistributedDataParallel,
        pruner_options={"progress": SIZES},
        after_batch=lambda batch, state: positions.append(state()["scheduler"]["last_epoch"]),
    )
    found[run]["positions"] = positions
    Path(f"{out}/rank{rank}.json").write_text(json.dumps(found))
    leave()


def main_killed(out: str, name: str, die_at: str) -> None:
    """Train under DDP, saving every third batch; die by SIGKILL after some batches, or go on from that."""
    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    saved = Path(f"{out}/{name}-rank{rank}.pt")
    resume = torch.load(saved, weights_only=True) if saved.exists() else None

    def after_batch(batch: int, state: Callable[[], dict[str, Any]]) -> None:
        if batch % 3 == 0:
            torch.save(state(), f"{saved}.new")
            os.replace(f"{saved}.new", saved)
            dist.barrier()
        if batch == int(die_at):
            os.kill(os.getpid(), signal.SIGKILL)

    result = train(
        METHODS["importance"],
        f"{out}/{name}",
        loader=make_loader(ranks=ranks),
        wrap=DistributedDataParallel,
        resume=resume,
        after_batch=after_batch,
    )
    Path(f"{out}/{name}-rank{rank}.json").write_text(json.dumps(result))
    leave()


def leave() -> None:
    """End this rank when all have come here.

    destroy_process_group() waits for gloo's thread with the GIL held, which that thread may want to let go of a tensor:
    seen with a debugger on torch 2.7, a rank that never ended.
    """
    dist.barrier()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    (main_killed if len(sys.argv) > 3 else main)(*sys.argv[1:])


def starts_by_sizes(known: list[int], forecast: list[float], total: float) -> list[float]:
    """Where epochs start, and the run ends, whose samples have sizes: each takes its part of what is left.

    Args:
        known: what those that have begun keep.
        forecast: what all are planned to keep.
        total: the length of the run.
    """
    starts = [0.0]
    for epoch, planned in enumerate(forecast):
        size = known[epoch] if epoch < len(known) else planned
        starts.append(starts[-1] + (total - starts[-1]) * size / (size + sum(forecast[epoch + 1 :])))
    return starts
