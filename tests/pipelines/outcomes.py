"""What equal runs of recipes have in common."""

import json
from pathlib import Path
from typing import Any

import torch

from ted_stream.pipelines.training.metrics_record import read_metrics


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """The network's, of the newest checkpoint of either trainer."""
    newest = folder / "checkpoints" / "newest"
    if newest.exists():
        return torch.load(newest.with_name(newest.read_text()), weights_only=True)["network"]
    state = torch.load(folder / "checkpoints" / "latest-rank0.pt", weights_only=False)["state"]["model"]
    return {name.partition(".")[2]: value for name, value in state.items()}  # within "module" or "model"


def outcome(folder: Path) -> dict[str, Any]:
    """Its metrics, counts, skip-lists' digests and weights."""
    result = json.loads((folder / "result.json").read_text())
    names = ("metrics", "epochs", "samples", "forwarded", "save_ratio", "planned_save_ratio")
    run = folder / "run.json"
    records = json.loads(run.read_text())["epochs"] if run.exists() else []
    return {
        **{name: result[name] for name in names},
        "digests": [record["digest"] for record in records],
        "tests": read_metrics(str(folder)),
        "weights": {name: value.tolist() for name, value in weights_of(folder).items()},
    }
