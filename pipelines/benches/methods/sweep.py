"""What a sweep is asked for, and the runs that it takes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ted_stream.methods import METHODS

from ...corpora.prepared import DESCRIPTION_FILE, read_description
from ...corpora.regimes import Regime
from ...training.reference import SCORERS
from ...training.settings import ConfigError, read_yaml

__all__ = ["BASELINES", "FULL", "RANDOM", "SHORTER", "Run", "Sweep", "load_sweep", "regime_of", "runs_of"]

FULL, SHORTER, RANDOM = "full data", "full data, as many steps", "random"
BASELINES = (RANDOM, SHORTER)
# Settings of a training config that the sweep decides on.
OWN = {"autoresume", "folder", "load_path", "max_duration", "overwrite", "run_name", "save_interval", "seed", "trainer"}


@dataclass
class Sweep:
    """A sweep, as its YAML file has it."""

    source: str = MISSING
    """Folder of prepared images."""
    samples: int | None = None
    """Of the training split, drawn anew for every seed; null takes all."""
    size: int | None = None
    """Side that images are scaled down to; null leaves them."""
    regimes: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What becomes of the training split, by name: `noise`, `tail`, `copies`; none is {clean: {}}."""
    savings: list[float] = MISSING
    """Save ratios that every method is brought to."""
    epochs: list[int] = MISSING
    """Lengths of a full-data run."""
    seeds: int = 5
    arms: dict[str, dict[str, Any]] = MISSING
    """By name, the settings of `pruning` but for `prune_ratio`, which is found; or, of a method that scores once,
    `score` with its name and the settings of a scoring run, to train on its subset."""
    train: dict[str, Any] = MISSING
    """A training config, but for what the sweep decides on: data, method, length and seed."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training run of a sweep.

    Attributes:
        source: of the dataset.
        source_digest: of its description, which has its counts, means and how it was made.
        data: what the dataset is made with, beside the seed.
        regime: its name.
        epochs: of a full-data run.
        arm: its name.
        given: its settings; empty for full data.
        saving: the save ratio that it is brought to; ``None`` of full data.
        seed: of the data, the weights, the order and the draws.
        train: the training config.
    """

    source: str
    source_digest: str
    data: dict[str, Any]
    regime: str
    epochs: int
    arm: str
    given: dict[str, Any]
    saving: float | None
    seed: int
    train: dict[str, Any]

    @property
    def key(self) -> str:
        """A digest of all that its result hangs on; names of regimes and arms do not matter."""
        parts = {name: value for name, value in asdict(self).items() if name not in ("regime", "arm", "source")}
        parts["baseline"] = self.arm if self.arm in (FULL, SHORTER) else ""
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def group(self) -> tuple[str, int, float | None]:
        """What runs must share to be compared, beside the seed."""
        return self.regime, self.epochs, self.saving


def load_sweep(path: str | Path) -> Sweep:
    """Read a sweep's file.

    Raises:
        FileNotFoundError: no such file, or no dataset where it says.
        ConfigError: a wrong name or value.
    """
    given = read_yaml(path)
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Sweep), given)
        sweep = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {error.full_key}: {(error.msg or str(error)).splitlines()[0]}.") from error
    assert isinstance(sweep, Sweep)
    sweep.regimes = sweep.regimes or {"clean": {}}  # no default, which would be merged with what is given
    _check(sweep, str(path))
    read_description(sweep.source)
    named: dict[str, Run] = {}
    for run in runs_of(sweep):
        same = named.setdefault(run.key, run)
        if same is not run:
            raise ConfigError(
                f"{path}: {run.regime}, {run.arm} is the same as {same.regime}, {same.arm}; leave one of them out."
            )
    return sweep


def _check(sweep: Sweep, path: str) -> None:
    for name, given in sweep.regimes.items():
        if "/" in name:
            raise ConfigError(f"{path}: regimes.{name}: the name becomes that of files; write it without a slash.")
        try:
            Regime(**given)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{path}: regimes.{name}: {error}") from error
    for name in sorted(OWN & sweep.train.keys()):
        raise ConfigError(f"{path}: train.{name}: that is the sweep's own; leave it out.")
    if not sweep.savings:
        raise ConfigError(f"{path}: savings is empty; give save ratios such as [0.5].")
    for saving in sweep.savings:
        if not 0 < saving < 1:
            raise ConfigError(f"{path}: savings has {saving}, but a save ratio lies in (0, 1).")
    if not sweep.epochs or min(sweep.epochs) < 2:
        raise ConfigError(f"{path}: epochs is {sweep.epochs}; give lengths of 2 or more.")
    if sweep.seeds < 1:
        raise ConfigError(f"{path}: seeds is {sweep.seeds}, expected 1 or more.")
    if sweep.arms.get(RANDOM, {}).get("method") != "random":
        raise ConfigError(f"{path}: arms needs {RANDOM}: {{method: random}}, which all others are compared with.")
    for name, given in sweep.arms.items():
        if name in (FULL, SHORTER):
            raise ConfigError(f"{path}: arms.{name}: that is a baseline of every sweep; name the arm otherwise.")
        if "prune_ratio" in given:
            raise ConfigError(f"{path}: arms.{name}: prune_ratio is found by the saving; leave it out.")
        known = SCORERS if "score" in given else METHODS
        method = given.get("score", given.get("method"))
        if method not in known:
            raise ConfigError(f"{path}: arms.{name}: no method {method!r}; there is {', '.join(known)}.")


def runs_of(sweep: Sweep) -> Iterator[Run]:
    """All runs; seeds are the outer loop, so that a sweep that is cut off has few seeds of everything."""
    digest = hashlib.sha256((Path(sweep.source) / DESCRIPTION_FILE).read_bytes()).hexdigest()
    for seed in range(sweep.seeds):
        for regime, given in sweep.regimes.items():
            for epochs in sweep.epochs:
                data = {"samples": sweep.samples, "size": sweep.size, **asdict(Regime(**given))}
                same = {
                    "source": sweep.source,
                    "source_digest": digest,
                    "data": data,
                    "regime": regime,
                    "epochs": epochs,
                    "seed": seed,
                    "train": sweep.train,
                }
                yield Run(arm=FULL, given={}, saving=None, **same)
                for saving in sweep.savings:
                    # As many steps as the random subsets take.
                    yield Run(arm=SHORTER, given=dict(sweep.arms[RANDOM]), saving=saving, **same)
                    for arm, settings in sweep.arms.items():
                        yield Run(arm=arm, given=dict(settings), saving=saving, **same)


def regime_of(data: Mapping[str, Any]) -> tuple[Regime, dict[str, Any]]:
    """The regime and what else a run's dataset is made with."""
    data = dict(data)
    rest = {name: data.pop(name) for name in ("samples", "size")}
    return Regime(**data), rest
