"""Small scoring runs for the tests of the command."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from typer.testing import CliRunner, Result

from ted_stream.cli.commands import app
from ted_stream.pipelines.corpora.instructions import prepare_instructions

__all__ = ["METHOD_SETTINGS", "QUICKSTART", "SMALL", "Command", "command_on", "prepared_pairs", "score_text"]

CONFIGS = Path(__file__).parents[2] / "configs"
QUICKSTART = str(CONFIGS / "quickstart.yaml")
SMALL = [
    *("pruning.method=none", "max_duration=2ep", "data.num_workers=0", "model.channels=[4, 8]", "overwrite=false"),
    *("data.eval_batch_size=64", "eval_interval=2ep"),
]
# What the registered methods need in a run as short as these; all others take their defaults.
METHOD_SETTINGS: dict[str, list[str]] = {
    "deepfool": ["steps=2", "classes=3"],
    "dual": ["window=2", "epochs=3", "max_duration=3ep"],
    "tdds": ["window=3", "epochs=3", "max_duration=3ep"],
}
Command = Callable[..., Result]


def command_on(data: Path, folder: Path) -> Command:
    """A function that runs ``ted-stream score`` on prepared digits with a small model."""

    def run(method: str | None, *overrides: str, name: str = "run", command: Sequence[str] = ()) -> Result:
        asked = [] if method is None else [f"method={method}", *METHOD_SETTINGS.get(method, [])]
        places = [f"data.path={data}", f"folder={folder / name}"]
        return CliRunner().invoke(app, ["score", QUICKSTART, *SMALL, *places, *asked, *overrides, *command])

    return run


def prepared_pairs(folder: Path) -> Path:
    """40 prompts and answers in a folder, 32 of them in the training split, prepared with a tokenizer of their own."""
    lines = [{"prompt": f"Count to {n}.", "response": " ".join(map(str, range(n + 1)))} for n in range(40)]
    (folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    prepare_instructions(folder / "data", folder / "train.jsonl", test_fraction=0.2, train_tokenizer_size=300)
    return folder / "data"


def score_text(text: Path, folder: Path, *overrides: str) -> Result:
    """``ted-stream score`` on prepared text with a small model."""
    sizes = ["data.batch_size=8", "model.n_embd=16", "model.n_layer=1", "max_duration=2ep", "scheduler.warmup=2ba"]
    places = [f"data.path={text}", f"folder={folder}", "pruning.method=none", "progress_bar=false"]
    return CliRunner().invoke(app, ["score", str(CONFIGS / "gsm8k_cpu.yaml"), *sizes, *places, *overrides])
