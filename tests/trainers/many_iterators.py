"""Short pruned runs whose every epoch starts workers anew, beside gloo's threads: run by test_worker_starts.py."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from streamed import Streamed
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from ted_stream import TED, Pruner

EPOCHS = 10  # of a run


def main() -> None:
    data, out, epochs, context = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    dist.init_process_group("gloo")
    if context == "forkserver":
        torch.multiprocessing.get_context(context).set_forkserver_preload(["streamed"])
    dataset = Streamed(local=str(data), shuffle=True, batch_size=8)
    loader = DataLoader(dataset, batch_size=8, num_workers=2, multiprocessing_context=context)
    for run in range(epochs // EPOCHS):
        model = nn.parallel.DistributedDataParallel(nn.Linear(6, 3, dtype=torch.float64))
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        with Pruner(TED(0.5), model, loader, epochs=EPOCHS, folder=out / f"run{run}") as pruner:
            for epoch in pruner:
                for x, y in pruner.batches():
                    pruner.loss(cross_entropy(model(x), y)).backward()
                    optimizer.step()
                    optimizer.zero_grad()
                (out / f"epochs{dist.get_rank()}").write_text(str(EPOCHS * run + epoch + 1))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
