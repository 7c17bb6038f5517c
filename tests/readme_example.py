"""Runs the README's first example on the ranks it is launched on: run by test_readme_example.py.

The example's text runs as it stands, but for these words of it: the local folder, the duration ("90ep"), for tar shards
the remote folder, and the number of workers where they are spawned. ``s3://bucket`` is on the server that
S3_ENDPOINT_URL names. The names that the example leaves free are given here: model, cosine, sgd. In place of Composer's
Trainer stands one with other values for what the example leaves at its defaults: the device, the seed, checkpoints.
"""

import json
import multiprocessing
import os
import re
import sys
from pathlib import Path
from typing import Any

EXAMPLE = re.findall(r"```python\n(.*?)```", (Path(__file__).parents[1] / "README.md").read_text(), flags=re.DOTALL)[0]
REMOTE = "s3://bucket/imagenet"
SIDE = 8
NUM_CLASSES = 4


def main() -> None:
    # Not imported by the workers, which import this file anew where they are spawned.
    import composer
    import torch
    from composer.models import ComposerModel
    from composer.optim import CosineAnnealingScheduler
    from composer.utils import dist
    from torch import nn

    class SmallModel(ComposerModel):
        """Classifies the images of batches as the default collate function makes them."""

        def __init__(self) -> None:
            super().__init__()
            sizes = 3 * SIDE * SIDE, 16
            self.layers = nn.Sequential(nn.Flatten(), nn.Linear(*sizes), nn.ReLU(), nn.Linear(sizes[1], NUM_CLASSES))

        def forward(self, batch: Any) -> torch.Tensor:
            return self.layers(batch["npy"].float() / 255)

        def loss(self, outputs: torch.Tensor, batch: Any) -> torch.Tensor:
            return nn.functional.cross_entropy(outputs, batch["cls"])

    composers_trainer = composer.Trainer

    def run(name: str, *, local: str, remote: str, epochs: int, start: str, resumes: str | None) -> None:
        """Run the example, and write down what it came to."""
        multiprocessing.set_start_method(start, force=True)
        code = EXAMPLE
        workers = "num_workers=8" if start == "fork" else "num_workers=2"
        replaced = {"/nvme/imagenet": local, REMOTE: remote, "90ep": f"{epochs}ep", "num_workers=8": workers}
        for old, new in replaced.items():
            assert code.count(old) == 1, old
            code = code.replace(old, new)
        settings: dict[str, Any] = {"run_name": name, "save_folder": f"{name}-checkpoints", "save_interval": "1ba"}
        if resumes is not None:
            # After the first batch of the last epoch.
            checkpoints = Path(f"{resumes}-checkpoints").glob(f"ep{epochs - 1}-ba*-rank0.pt")
            load_path = min(checkpoints, key=lambda path: int(path.name.split("-")[1].removeprefix("ba")))
            settings = {"run_name": resumes, "load_path": str(load_path)}
        settings |= {"device": "cpu", "seed": 3, "progress_bar": False, "auto_log_hparams": False}
        trainers = []

        class Trainer(composers_trainer):
            def __init__(self, **arguments: Any) -> None:
                trainers.append(self)
                super().__init__(**settings, **arguments)

        composer.Trainer = Trainer
        torch.manual_seed(0)
        model = SmallModel()
        exec(
            code,
            {"model": model, "cosine": CosineAnnealingScheduler(), "sgd": torch.optim.SGD(model.parameters(), 0.1)},
        )
        (trainer,) = trainers
        trainer.close()
        weights = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
        result = {"weights": weights.tolist(), "batches": trainer.state.timestamp.batch.value}
        Path(f"{name}-rank{dist.get_global_rank()}.json").write_text(json.dumps(result))

    os.chdir(sys.argv[1])
    for case in json.loads(Path("cases.json").read_text()):
        print(f"case {case['name']}", flush=True)
        run(**case)


if __name__ == "__main__":
    main()
