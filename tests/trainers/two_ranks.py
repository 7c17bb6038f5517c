"""Trains with TED on the ranks it is launched on and writes down what every rank saw: run by test_two_ranks.py."""

import json
import sys
from typing import Any

import numpy as np
import torch
from composer import Trainer
from composer.models import ComposerClassifier
from composer.utils import dist
from small_run import ReadPerEpoch, TupleDataset, make_model, make_ted
from torch.utils.data import DataLoader

from ted_stream.engine import Ranks
from ted_stream.pruning import ExponentialMean, Measurements, ScoreStore, TorchDistributed, top_k_mask
from ted_stream.pruning.selection import quantiles_of

NUM_SAMPLES = 500


def scores_and_selection() -> dict[str, Any]:
    """The distributed score store and top k on measurements that are dealt out unevenly."""
    communicator = TorchDistributed()
    rank, world_size = communicator.rank, communicator.world_size
    rng = np.random.default_rng(0)
    store = ScoreStore(NUM_SAMPLES, ExponentialMean(relative=True), communicator=communicator)
    for epoch in range(3):
        ids = rng.integers(0, NUM_SAMPLES, 400)
        importance = rng.integers(1, 50, 400) / 64
        steps = np.repeat(np.arange(10), 40)
        # The last rank measures nothing in the last epoch.
        owner = rng.integers(2, size=400) % world_size if epoch < 2 else np.zeros(400, int)
        mine = owner == rank
        store.update(Measurements(ids=ids[mine], importance=importance[mine], steps=steps[mine]))
    keys = np.nan_to_num(store.scores, nan=np.inf)
    mask = top_k_mask(keys, 123, first_id=store.first_id, seed=5, communicator=communicator)
    return {
        "scores": store.gather().tolist(),
        "kept": np.concatenate(communicator.all_gather(store.first_id + np.flatnonzero(mask))).tolist(),
        "quantiles": quantiles_of(store.scores, (0.1, 0.5, 0.9), communicator),
        "unmeasured": store.num_unmeasured(),
    }


def train(data: str, out: str, model: ComposerClassifier) -> dict[str, Any]:
    batch_size = 8 // dist.get_world_size()
    dataset = TupleDataset(local=data, shuffle=True, batch_size=batch_size)
    ids = ReadPerEpoch(dataset)
    ted = make_ted(0.6, folder=f"{out}/run")
    trainer = Trainer(
        model=model,
        train_dataloader=DataLoader(dataset, batch_size=batch_size),
        max_duration="5ep",
        optimizers=torch.optim.SGD(model.parameters(), 0.1),
        algorithms=[ted],
        callbacks=[ids],
        device="cpu",
        seed=1,
        run_name="two-ranks",
        progress_bar=False,
        auto_log_hparams=False,
    )
    trainer.fit()
    weights = torch.cat([parameter.detach().flatten() for parameter in trainer.state.model.parameters()])
    return {
        "digests": [record.digest for record in ted.records],
        "forwarded": [record.forwarded for record in ted.records],
        "ids": ids.epochs,
        "weights": weights.tolist(),
    }


def sums() -> dict[str, list[int]]:
    """What all_reduce_sum makes of arrays that travel in one exchange, and of those too large for it."""
    communicator = TorchDistributed()
    found = {}
    for dtype in (np.uint8, np.int64):
        for length in (3, 3_000_000):
            mine = np.arange(length).astype(dtype) % 50 + communicator.rank
            total = communicator.all_reduce_sum(mine)
            assert total.dtype == dtype
            assert np.array_equal(mine, np.arange(length).astype(dtype) % 50 + communicator.rank)
            found[f"{np.dtype(dtype)} {length}"] = total[-3:].tolist()
    return found


def failures() -> dict[str, list[str]]:
    """What every rank hears when one of them fails."""

    def fail_on(rank: int) -> str:
        if dist.get_global_rank() == rank:
            raise FileNotFoundError(f"no shard on rank {rank}")
        return "fine"

    found: dict[str, list[str]] = {"every": [], "zero": []}
    for rank in range(-1, dist.get_world_size()):
        try:
            found["every"].append(Ranks().on_every_rank(lambda rank=rank: fail_on(rank)))
        except Exception as error:
            found["every"].append(repr(error))
    for rank in (-1, 0):
        try:
            found["zero"].append(Ranks().on_rank_zero(lambda rank=rank: fail_on(rank)))
        except Exception as error:
            found["zero"].append(repr(error))
    return found


def main() -> None:
    data, out = sys.argv[1:]
    dist.initialize_dist("cpu")
    result = {
        "distributed": scores_and_selection(),
        "run": train(data, out, make_model()),
        "failures": failures(),
        "sums": sums(),
    }
    with open(f"{out}/rank{dist.get_global_rank()}.json", "w") as file:
        json.dump(result, file)


if __name__ == "__main__":
    main()
