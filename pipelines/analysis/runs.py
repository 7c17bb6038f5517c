"""What a run folder holds: settings, checkpoints between epochs, and what every epoch kept."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.serialization import safe_globals
from torch.torch_version import TorchVersion

from ted_stream.files import is_remote
from ted_stream.skip_list import DatasetLayout, SkipList, read_skip_list

from ..training.checkpoints import FORMAT
from ..training.run_config import CONFIG_FILE
from ..training.score import ASKED_FILE
from ..training.settings import ConfigError, Settings, counts_batches, epochs, load_settings, replaced

__all__ = ["Run", "read_run", "read_weights"]

CHECKPOINT = re.compile(r"ep(\d+)-ba(\d+)(-rank0)?\.pt")  # the loop's, and Composer's of one file
# As for an evaluation: full precision, one process, and nothing that only training needs.
EVALUATION = {
    "trainer": "loop",
    "pruning.method": "none",
    "data.skip_list": None,
    "precision": "fp32",
    "compile": False,
    "fsdp": False,
    "eval_interval": "1ep",
    "save_interval": None,
    "autoresume": False,
    "load_path": None,
}
_ARRAYS = [np.ndarray, np.dtype, *(type(np.dtype(kind)) for kind in np.typecodes["All"])]
# What Composer's checkpoints hold beside tensors, numbers and text: times, versions and states of generators.
COMPOSERS = [datetime.timedelta, TorchVersion, np.zeros(1).__reduce__()[0], *_ARRAYS]


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run of ``ted-stream train``, as its folder tells.

    Attributes:
        folder: of the run.
        settings: it was trained with, but for what was asked for otherwise.
        records: of its epochs as in ``run.json``, without the settings; empty without a pruning method.
        checkpoints: paths by the number of epochs that were over, 1 and more; only those between two epochs.
        within: names of checkpoints from the middle of an epoch, where there is none of its beginning.
    """

    folder: Path
    settings: Settings
    records: tuple[Mapping[str, Any], ...] = field(repr=False)
    checkpoints: Mapping[int, Path] = field(repr=False)
    within: tuple[str, ...] = ()

    @property
    def method(self) -> str:
        """What decided what is kept."""
        if self.settings.pruning.method == "none" and self.settings.data.skip_list is not None:
            return "fixed subset"
        return self.settings.pruning.method

    @property
    def is_pruned(self) -> bool:
        """Whether there is anything that decided what is kept."""
        return self.method != "none"

    @property
    def num_epochs(self) -> int:
        """T, of the run as it was asked for."""
        return epochs(self.settings)

    @property
    def evaluation(self) -> Settings:
        """Settings to evaluate the run's network with."""
        return replaced(self.settings, EVALUATION)

    @property
    def begins_anew(self) -> bool:
        """Whether its first weights were those that its seed gives; else they came from a checkpoint of another run."""
        path = self.settings.load_path
        return path is None or Path(path).resolve().parent == (self.folder / "checkpoints").resolve()

    def skip_list(self, epoch: int, layout: DatasetLayout) -> SkipList | None:
        """What an epoch kept.

        Args:
            epoch: 0-based.
            layout: of the dataset.

        Returns:
            ``None`` where the run had no such epoch, or nothing decides what is kept.

        Raises:
            FileNotFoundError: the file is gone.
            SkipListError: it was changed, or belongs to another dataset.
        """
        if self.method == "fixed subset":
            path = self.settings.data.skip_list
            assert path is not None
            return read_skip_list(path, layout=layout) if epoch < self.num_epochs else None
        found = [record for record in self.records if record["epoch"] == epoch]
        if not found:
            return None
        return read_skip_list(self.folder / found[0]["skip_list"], layout=layout, digest=found[0]["digest"])

    def pruned_epochs(self) -> Sequence[int]:
        """The epochs whose skip-lists there are."""
        if self.method == "fixed subset":
            return range(self.num_epochs)
        return [record["epoch"] for record in self.records]


def read_run(folder: str | Path, overrides: Sequence[str] = ()) -> Run:
    """What a run folder holds.

    Args:
        folder: local, that ``ted-stream train`` made.
        overrides: ``data.key=value``, where the dataset or a fixed skip-list lies elsewhere now, or how to read it.

    Raises:
        ConfigError: a folder that is not local, an override of what the run was trained with, no checkpoints between
            epochs, or one that cannot be read.
        FileNotFoundError: the folder is none of a run.
    """
    if is_remote(folder):
        raise ConfigError(f"{folder} is remote, and a run is analysed where its files are local; copy it to a folder.")
    folder = Path(folder)
    for override in overrides:
        if not override.startswith("data."):
            raise ConfigError(
                f"the override {override!r} is not of the section data, and all else stays as the run in {folder} was "
                "trained; leave it out."
            )
    if not (folder / CONFIG_FILE).is_file():
        raise FileNotFoundError(
            f"{folder} holds no {CONFIG_FILE}, so it is no run folder of `ted-stream train`; name one, as its last "
            "lines show it."
        )
    if (folder / ASKED_FILE).exists():
        raise ConfigError(
            f"{folder} is of `ted-stream score`, whose surrogates are not trained as its config says; name a folder of "
            "`ted-stream train`."
        )
    settings = load_settings(folder / CONFIG_FILE, overrides)
    if counts_batches(settings):
        raise ConfigError(
            f"{folder} was trained for {settings.max_duration}, which ends within an epoch, and analyses go by whole "
            "epochs; name a run whose max_duration is in epochs, such as 8ep."
        )
    checkpoints, within = _checkpoints(folder, settings)
    return Run(
        folder=folder,
        settings=settings,
        records=() if settings.pruning.method == "none" else _records(folder, settings),
        checkpoints=checkpoints,
        within=within,
    )


def _records(folder: Path, settings: Settings) -> tuple[Mapping[str, Any], ...]:
    path = folder / "run.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} holds no run.json, though its method is {settings.pruning.method}, so what it kept is not "
            "known; copy the whole run folder, or train again."
        )
    return tuple(json.loads(path.read_text())["epochs"])


def _checkpoints(folder: Path, settings: Settings) -> tuple[dict[int, Path], tuple[str, ...]]:
    """Those between epochs, by epochs, and the names of others; of an epoch that of the fewest batches counts."""
    found: dict[int, tuple[int, Path]] = {}
    for path in (folder / "checkpoints").glob("*.pt"):
        name = CHECKPOINT.fullmatch(path.name)
        if name is None or path.is_symlink():
            continue
        epoch, batches = int(name[1]), int(name[2])
        if epoch and (epoch not in found or batches < found[epoch][0]):
            found[epoch] = batches, path
    paths = {epoch: path for epoch, (_, path) in sorted(found.items())}
    within = tuple(path.name for path in paths.values() if _loaded(path)[1])
    if len(within) == len(paths):
        raise ConfigError(
            f"{folder} holds no checkpoint of an epoch's end (save_interval is {settings.save_interval or 'null'}), "
            "and there is nothing to analyse without one; train it again with save_interval=1ep."
        )
    return {epoch: path for epoch, path in paths.items() if path.name not in within}, within


def read_weights(path: Path, names: Sequence[str]) -> Mapping[str, Tensor]:
    """A network's weights from a checkpoint of either trainer; nothing in it is executed.

    Args:
        path: of the file.
        names: of the weights.

    Returns:
        By name, on the CPU, read from the file when they are used.

    Raises:
        ConfigError: the file is no checkpoint, or one of another network.
    """
    found, _ = _loaded(path)
    found = {name.replace("_orig_mod.", ""): tensor for name, tensor in found.items()}
    for prefix in ("", "module.", "model."):  # within a ComposerClassifier, or a HuggingFaceModel
        weights = {name.removeprefix(prefix): tensor for name, tensor in found.items() if name.startswith(prefix)}
        if weights.keys() == set(names):
            return weights
    missing = sorted(set(names) - found.keys()) or sorted(found.keys() - set(names))
    raise ConfigError(
        f"{path} is of another network than the run's config.yaml says (the first that differs: {missing[0]}); restore "
        "the config that it was trained with."
    )


def _loaded(path: Path) -> tuple[Mapping[str, Tensor], int]:
    """The weights as they are called in the file, and how many batches of an epoch that had begun they have seen."""
    try:
        with safe_globals(COMPOSERS):
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        if path.name.endswith("-rank0.pt"):
            state = state["state"]
            return state["model"], state["timestamp"]["Timestamp"]["batch_in_epoch"]
        if state["format"] != FORMAT:
            raise ValueError(f"its format is {state['format']!r}, not {FORMAT!r}")
        return state["network"], state["run"]["done"]
    except Exception as error:  # torch's own for other files share no base
        reason = f"{error}".splitlines()[0] if f"{error}" else ""
        raise ConfigError(
            f"{path} cannot be read as a checkpoint of this version ({type(error).__name__}: {reason}); copy it again, "
            "or move it out of the folder to go on without it."
        ) from error
