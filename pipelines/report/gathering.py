"""What there is to report of a run folder: of a run that pruned or not, by any host."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ted_stream.export.findings import RunFindings, read_findings
from ted_stream.export.history import EpochChange
from ted_stream.files import is_remote, join, read_bytes

from ..training.metrics_record import LABELS, read_metrics
from ..training.run_config import read_config

__all__ = ["Curve", "ReportedRun", "gather"]

_RESULT = "result.json"  # of the recipes
_TRAINER_STATE = "trainer_state.json"  # of Hugging Face's Trainer


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A metric as a run recorded it.

    Attributes:
        name: for people.
        epochs: at which, in full epochs; whole numbers and fractions.
        forwarded: samples that had been trained on by then.
        values: of the metric.
    """

    name: str
    epochs: Sequence[float]
    forwarded: Sequence[float]
    values: Sequence[float]


@dataclass(frozen=True, kw_only=True, eq=False)
class ReportedRun:
    """One run.

    Attributes:
        name: for people, unlike those of the other runs.
        folder: of the run.
        method: its repr, or name; "none" of a run on all data.
        samples: of the dataset; ``None`` where it is not known.
        state: how far it has come, in words.
        max_epochs: of the run as it was planned; ``None`` where it is not known.
        found: of what it pruned; ``None`` of a run on all data.
        result: what ``result.json`` holds; empty while the run has not ended.
        curves: that it recorded.
        notes: what is not known, and why.
    """

    name: str
    folder: str
    method: str
    samples: int | None
    state: str
    max_epochs: int | None
    found: RunFindings | None = field(repr=False)
    result: Mapping[str, Any] = field(repr=False)
    curves: Sequence[Curve] = field(repr=False)
    notes: Sequence[str]

    @property
    def epochs(self) -> list[EpochChange]:
        """That have begun; none of a run on all data."""
        return [] if self.found is None else self.found.epochs

    @property
    def planned_save_ratio(self) -> float | None:
        """``None`` where the method decides as it goes."""
        return 0.0 if self.found is None else self.found.run["planned_save_ratio"]

    @property
    def save_ratio(self) -> float:
        """Over the epochs that have ended."""
        return self.result.get("save_ratio", 0.0) if self.found is None else self.found.run["save_ratio"]


def gather(folder: str, *, name: str, data: str | None) -> ReportedRun:
    """Read a run folder.

    Args:
        folder: local or a URI.
        name: to call it by.
        data: of the dataset; by default that of the run's config.

    Raises:
        FileNotFoundError: it is none of a run.
        ValueError: a file of it is damaged.
    """
    config = read_config(folder)
    result = _json(join(folder, _RESULT)) or {}
    notes: list[str] = []
    try:
        found = read_findings(folder, data=data or config.get("data"))
    except FileNotFoundError:
        if not result and not config:
            raise
        if config.get("method", "none") != "none":
            notes.append(f"The method is {config['method']}, but nothing is known of what it pruned: no epoch began.")
        found = None
    if found is not None:
        notes += found.notes
        if data is None and "data" not in config:
            notes.append("The run does not say which dataset it read, so that samples and classes are not shown.")
    samples = result.get("samples") if found is None else found.run["samples"]
    curves = _curves(folder, samples, [] if found is None else found.epochs)
    if not curves:
        notes.append("The run recorded no accuracy and no loss.")
    return ReportedRun(
        name=name,
        folder=folder,
        method=config.get("method", "none") if found is None else found.run["settings"],
        samples=samples,
        state=_state(found, result, config),
        max_epochs=result.get("epochs") if found is None else found.run["max_epochs"],
        found=found,
        result=result,
        curves=curves,
        notes=tuple(notes),
    )


def _state(found: RunFindings | None, result: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    if found is None:
        return f"finished, {result['epochs']} epochs" if result else f"not finished, of {config.get('duration')}"
    done = f"{found.epochs_done} of {found.run['max_epochs']} epochs"
    return f"finished, {done}" if found.run.get("finished") else f"killed or still at work, {done}"


def _json(path: str) -> Any:
    try:
        return json.loads(read_bytes(path))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); put back the file that the run wrote.") from error


def _curves(folder: str, samples: int | None, epochs: Sequence[EpochChange]) -> list[Curve]:
    """Of the recipes' own record, or of what Hugging Face's Trainer left beside the run."""
    ended = [epoch for epoch in epochs if epoch.forwarded]
    total = np.cumsum([0, *(epoch.forwarded for epoch in ended)])
    at = np.array([ended[0].epoch if ended else 0, *(epoch.epoch + 1 for epoch in ended)])
    points: dict[str, list[tuple[float, float, float]]] = {}
    for test in read_metrics(folder):
        forwarded = test["samples"]
        within = np.interp(forwarded, total, at) if ended else forwarded / samples if samples else np.nan
        for name, value in test["metrics"].items():
            points.setdefault(str(LABELS.get(name, name)), []).append((float(within), forwarded, value))
    for entry in [] if points else _trainer_log(folder):
        epoch = entry.get("epoch")
        for name, value in entry.items():
            if isinstance(epoch, (int, float)) and isinstance(value, (int, float)) and _is_metric(name):
                forwarded = float(np.interp(epoch, at, total)) if ended else np.nan
                points.setdefault(name.replace("_", " "), []).append((epoch, forwarded, value))
    return [
        Curve(name=name, epochs=epochs, forwarded=forwarded, values=values)
        for name, rows in points.items()
        for epochs, forwarded, values in [tuple(zip(*rows, strict=True))]
    ]


def _is_metric(name: str) -> bool:
    return "loss" in name or ("acc" in name and not name.endswith("_per_second"))


def _trainer_log(folder: str) -> list[Mapping[str, Any]]:
    """The log of the newest checkpoint of Hugging Face's Trainer, in whose output folder the run's folder lies."""
    if is_remote(folder):
        return []
    output = Path(folder).resolve().parent
    states = [output / _TRAINER_STATE, *output.glob(f"checkpoint-*/{_TRAINER_STATE}")]
    found = [state for state in map(_json, map(str, states)) if state]
    return max(found, key=lambda state: state.get("global_step", 0), default={}).get("log_history", [])
