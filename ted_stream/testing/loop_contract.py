"""Trains a run in a plain loop, by torch alone."""

import os
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from ted_stream.testing.contract_parts import (
    make_loader,
    make_method,
    make_network,
    make_optimizer,
    make_scheduler,
    save_result,
    seed_of,
)
from ted_stream.testing.contract_watch import watch
from ted_stream.testing.runs import Run
from ted_stream.trainers.loop import Pruner

__all__ = ["train"]


class Checkpoint:
    """One file, of the state of everything; rank 0 writes it.

    Args:
        path: of it.
        model: as the loop calls it.
        optimizer: of the model.
        parts: whatever else has a state, by name.
    """

    def __init__(self, path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, **parts: Any) -> None:
        self.path, self.model, self.optimizer, self.parts = path, model, optimizer, parts

    def save(self, batches: int) -> None:
        """Write it whole or not at all; collective.

        Args:
            batches: of the run so far.
        """
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        model, optimizer = get_state_dict(self.model, self.optimizer, options=options)
        state = {name: part.state_dict() for name, part in self.parts.items()}
        if torch.distributed.get_rank() == 0:
            torch.save({"model": model, "optimizer": optimizer, "batches": batches, **state}, f"{self.path}.new")
            os.replace(f"{self.path}.new", self.path)

    def load(self) -> int:
        """Go on from it, if there is one; the batches of the run so far."""
        if not self.path.exists():
            return 0
        state = torch.load(self.path, weights_only=True)
        set_state_dict(
            self.model,
            self.optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
            options=StateDictOptions(full_state_dict=True),
        )
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        return state["batches"]


def make_model(network: nn.Sequential, run: Run) -> nn.Module:
    """What the loop calls."""
    if run.parallelism == "full":
        for layer in (network[0], network[3]):
            fully_shard(layer)
        fully_shard(network)  # which changes its class in place
        return network
    return DistributedDataParallel(network) if run.ranks > 1 else network


def train(run: Run, out: Path, rank: int) -> None:
    """Train, and write down what came of it."""
    network, loader = make_network(run), make_loader(run)
    model = make_model(network, run)
    optimizer = make_optimizer(model)
    pruner = Pruner(make_method(run), model, loader, epochs=run.epochs, folder=out / "run", run_name="run")
    scheduler = make_scheduler(optimizer, run, pruner.full_length)
    stretched = pruner.stretch(scheduler)
    checkpoint = Checkpoint(out / "checkpoint.pt", model, optimizer, scheduler=scheduler, pruner=pruner)
    every, unit = (int(run.save_interval[:-2]), run.save_interval[-2:]) if run.save_interval else (0, "")
    watch(pruner.engine, run, out, rank)
    torch.manual_seed(seed_of(rank))
    batches = checkpoint.load()
    with pruner:
        for epoch in pruner:
            for x, y in pruner.batches():
                loss = pruner.loss(F.cross_entropy(model(x), y))
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                stretched.step()
                batches += 1
                if unit == "ba" and batches % every == 0:
                    checkpoint.save(batches)
            if unit == "ep" and (epoch + 1) % every == 0:
                checkpoint.save(batches)
    save_result(out, rank, network, pruner.engine)
