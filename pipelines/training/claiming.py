"""The folder of a run: made its own, gone on with, or refused."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from omegaconf import DictConfig, OmegaConf

from ted_stream.export.run_files import LISTS, MANIFEST, RUN_FILE, SCORES
from ted_stream.files import exists, is_remote, join, read_bytes, write_bytes

from .checkpoints import CHECKPOINTS, NEWEST
from .durations import parse_duration
from .hub_models import MODEL_FOLDER
from .metrics_record import METRICS_FILE
from .results import RESULT_FILE, Result, digest_of
from .run_config import CONFIG_FILE, DATA_FILE
from .settings import ConfigError, Settings, counts_batches, epochs, steps

__all__ = ["LEFTOVERS", "claim_folder", "finished_result", "kept_before", "put_back"]

# What a run keeps from its first start to its end; how long it goes on, and where, may change.
_KEPT = ("seed", "data", "model", "optimizer", "scheduler", "pruning")
# But of them: where data are, and how fast they come.
_FREE = ("path", "cache", "in_memory", "eval_batch_size", "num_workers")
# What a run leaves in its folder; only this is removed when a run is replaced.
LEFTOVERS = (
    LISTS,
    "scores",
    CHECKPOINTS,
    RUN_FILE,
    SCORES,
    CONFIG_FILE,
    DATA_FILE,
    MANIFEST,
    RESULT_FILE,
    METRICS_FILE,
    MODEL_FOLDER,
)
# What names the newest checkpoint: the loop's, Composer's, and Composer's in an object store.
_NEWEST = (NEWEST, "latest-rank0.pt", "latest-rank0.pt.symlink")


def kept_before(settings: Settings) -> dict[str, bytes | None]:
    """What the folder says of the run that is gone on with, if one is: its settings and data."""
    goes_on = settings.autoresume or settings.load_path is not None
    return {name: _bytes_of(settings.folder, name) if goes_on else None for name in (CONFIG_FILE, DATA_FILE)}


def put_back(settings: Settings, before: dict[str, bytes | None]) -> None:
    """Leave what the folder said of the run that was not gone on with; nothing where none had begun."""
    folder = settings.folder
    if before[CONFIG_FILE] is None:
        begun = (name for name in LEFTOVERS if name not in (*before, METRICS_FILE))
        goes_on = settings.autoresume or settings.load_path is not None
        if is_remote(folder) or not goes_on or any(exists(join(folder, name)) for name in begun):
            return
    for name, content in before.items():
        if content is not None:
            write_bytes(join(folder, name), content)
        elif not is_remote(folder):
            Path(folder, name).unlink(missing_ok=True)


def _bytes_of(folder: str, name: str) -> bytes | None:
    try:
        return read_bytes(join(folder, name))
    except FileNotFoundError:
        return None


def finished_result(settings: Settings, data: str) -> Result | None:
    """The result of the very run that the settings ask for, if its folder holds it.

    Args:
        settings: that ask.
        data: digest of the dataset's content.

    Raises:
        ConfigError: it holds one of another trainer, or on other data.
        FileExistsError: it holds one of other settings that is as long, or longer.
    """
    try:
        result = json.loads(read_bytes(join(settings.folder, RESULT_FILE)))
    except FileNotFoundError:
        return None
    if result.get("asked") != digest_of(settings):
        _refuse_other_trainer(settings)
        if "asked" in result and not counts_batches(settings) and result["epochs"] >= epochs(settings):
            raise FileExistsError(
                f"{settings.folder} holds a run of other settings that has finished its {result['epochs']} epochs; see "
                f"its {CONFIG_FILE}. Only a longer max_duration goes on with it: set overwrite=true and "
                "autoresume=false to replace it, or run_name= or folder= to another place."
            )
        return None
    _refuse_other_data(settings, result.get("data"), data)
    print(f"The run in {settings.folder} has finished; this is what it did.", file=sys.stderr)
    return Result(**result)


def claim_folder(
    settings: Settings,
    leftovers: Sequence[str] = LEFTOVERS,
    *,
    length: int | None = None,
    data: str | None = None,
    goes_on: bool | None = None,
) -> None:
    """Make the run folder this run's own, and keep its settings there; called on rank 0 for all.

    Args:
        settings: of the run.
        leftovers: names of what a run of this kind leaves in its folder.
        length: batches of an epoch on full data, of a run that may go on for longer than it was begun for.
        data: digest of the dataset's content, to be kept there; ``None`` of a run that keeps it elsewhere.
        goes_on: whether with what the folder holds; by default with ``autoresume`` or ``load_path``.

    Raises:
        ConfigError: the settings go on with a run of another trainer, of other settings, on other data, or for less
            than it.
        FileExistsError: the folder holds another run, which is not to be replaced.
    """
    folder = settings.folder
    if goes_on is None:
        goes_on = settings.autoresume or settings.load_path is not None
    if is_remote(folder) and not goes_on and not settings.overwrite and exists(join(folder, CONFIG_FILE)):
        raise FileExistsError(
            f"{folder} holds an earlier run; set overwrite=true to write over it, autoresume=true to go on with it, or "
            "folder= to another place."
        )
    if goes_on:
        _refuse_other_trainer(settings)
        _refuse_other_settings(settings, length)
        if data is not None and _has_own_checkpoint(folder) and (known := _bytes_of(folder, DATA_FILE)) is not None:
            _refuse_other_data(settings, json.loads(known)["data"], data)
        _refuse_without_checkpoint(settings)
    if not is_remote(folder) and not goes_on:
        found = [name for name in leftovers if (Path(folder) / name).exists()]
        if found and not settings.overwrite:
            raise FileExistsError(
                f"{folder} holds an earlier run ({', '.join(found)}); set overwrite=true to replace it, "
                "autoresume=true to go on with it, or folder= to another place."
            )
        for name in found:
            path = Path(folder) / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    if not is_remote(folder):
        # By a job that was killed, checkpoints too; by the names that `write_bytes` gives.
        for half_written in Path(folder).rglob(f".*.{'[0-9a-f]' * 16}.tmp"):
            half_written.unlink()
    write_bytes(join(folder, CONFIG_FILE), OmegaConf.to_yaml(OmegaConf.structured(settings)).encode())
    if data is not None:
        write_bytes(join(folder, DATA_FILE), json.dumps({"data": data}).encode())


def _refuse_other_data(settings: Settings, before: str | None, data: str) -> None:
    """Refuse to go on with a run, or to tell of one, on data that are no longer those it was trained on."""
    if before not in (None, data):  # None where results did not tell yet
        raise ConfigError(
            f"data.path: {settings.data.path} holds other data than the run in {settings.folder} was begun on; prepare "
            "those again, or set autoresume=false with overwrite=true to begin again, or with folder= to another place."
        )


def _refuse_without_checkpoint(settings: Settings) -> None:
    """Refuse to begin a run again that has ended, and left nothing to go on from."""
    if exists(join(settings.folder, RESULT_FILE)) and not _has_checkpoint(settings):
        raise FileExistsError(
            f"{settings.folder} holds a run that has finished, and no checkpoints to go on from; set autoresume=false "
            "and overwrite=true to replace it, or folder= to another place."
        )


def _has_checkpoint(settings: Settings) -> bool:
    """Whether there is a checkpoint to go on from: the one that is named, or the folder's own."""
    return settings.load_path is not None or _has_own_checkpoint(settings.folder)


def _has_own_checkpoint(folder: str) -> bool:
    """Whether it holds the newest, as a trainer names it."""
    checkpoints = join(folder, CHECKPOINTS)
    if any(exists(join(checkpoints, name)) for name in _NEWEST):
        return True
    # Composer's link is gone for a moment, and made anew after a kill in it.
    return not is_remote(checkpoints) and any(Path(checkpoints).glob("ep*-ba*-rank0.pt"))


def _refuse_other_trainer(settings: Settings) -> None:
    """Refuse to go on with a run of another trainer, whose checkpoints are of another kind."""
    if not (begun := _begun_with(settings)):
        return
    before = begun.get("trainer", "composer")
    if before != settings.trainer:
        raise ConfigError(
            f"trainer is {settings.trainer}, but the run in {settings.folder} was begun with {before}, and neither "
            f"reads the other's checkpoints; set trainer={before} to go on with it, or folder= to another place."
        )


def _refuse_other_settings(settings: Settings, length: int | None) -> None:
    """Refuse to go on with other settings than a run was begun with: its checkpoints hold some, and not others."""
    if not _has_checkpoint(settings):
        return  # it begins again
    before, now = _begun_with(settings), OmegaConf.structured(settings)
    if length is not None:
        _refuse_shorter(settings, before, length)
    for section in _KEPT:
        whole = OmegaConf.is_config(now[section])
        for name in [f"{section}.{key}" for key in now[section] if key not in _FREE] if whole else [section]:
            was = OmegaConf.select(before, name, default=(value := OmegaConf.select(now, name)))
            if was != value:
                raise ConfigError(
                    f"{name} is {_shown(value)}, but the run in {settings.folder} was begun with {_shown(was)}; set "
                    f"{name}={_shown(was)} to go on with it, or autoresume=false with overwrite=true to begin again, "
                    "or with folder= to another place."
                )


def _refuse_shorter(settings: Settings, before: DictConfig, length: int) -> None:
    """Refuse to go on for less than a run was begun for: what it keeps, and its learning rate, went by that."""
    was = before.get("max_duration", settings.max_duration)
    if steps(settings, length) < parse_duration(was, ("ep", "ba")).in_batches(length=length, steps=0):
        raise ConfigError(
            f"max_duration is {settings.max_duration}, but the run in {settings.folder} was begun with {was}, and only "
            f"as long a one, or a longer one, goes on with it; set max_duration={was}, or autoresume=false with "
            "overwrite=true to begin again, or with folder= to another place."
        )


def _shown(value: object) -> object:
    return "null" if value is None else value


def _begun_with(settings: Settings) -> DictConfig:
    """The settings that the folder's run was begun with; empty where there is none."""
    return cast(DictConfig, OmegaConf.create((_bytes_of(settings.folder, CONFIG_FILE) or b"").decode()))
