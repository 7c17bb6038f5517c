"""Small scoring runs for the tests of the command."""

from collections.abc import Callable, Sequence
from pathlib import Path

from typer.testing import CliRunner, Result

from ted_stream.cli.commands import app

__all__ = ["METHOD_SETTINGS", "QUICKSTART", "SMALL", "Command", "command_on"]

QUICKSTART = str(Path(__file__).parents[2] / "configs" / "quickstart.yaml")
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
