"""One training run: settings in, a result out, through the trainer that they name."""

from __future__ import annotations

import gc
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import cast

import torch
from omegaconf import DictConfig, OmegaConf

from ted_stream.engine import Ranks, full_epoch_forwards
from ted_stream.engine.generators import seed_generators
from ted_stream.engine.plan import RunPlan
from ted_stream.engine.run_folder import RunLock
from ted_stream.export.run_files import LISTS, MANIFEST, RUN_FILE, SCORES
from ted_stream.files import exists, is_remote, join, read_bytes, write_bytes
from ted_stream.trainers.requirements import check_settings

from ..corpora.prepared import Description, read_description
from ..corpora.tokens import read_lengths
from .checkpoints import CHECKPOINTS, NEWEST
from .datasets import build_loaders
from .durations import parse_duration
from .hub_models import MODEL_FOLDER, refuse_other_tokenizer, save_model
from .metrics_record import METRICS_FILE
from .results import RESULT_FILE, Result, digest_of, result_of
from .run_config import CONFIG_FILE
from .settings import AUGMENTATIONS, MODELS_OF, ConfigError, Settings, counts_batches, epochs, steps
from .tasks import build_task

__all__ = ["LEFTOVERS", "RESULT_FILE", "Result", "check_data", "check_method", "claim_folder", "train"]

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
    MANIFEST,
    RESULT_FILE,
    METRICS_FILE,
    MODEL_FOLDER,
)
# What names the newest checkpoint: the loop's, Composer's, and Composer's in an object store.
_NEWEST = (NEWEST, "latest-rank0.pt", "latest-rank0.pt.symlink")


def train(settings: Settings) -> Result:
    """Train as the settings say.

    Args:
        settings: from `load_settings`.

    Returns:
        What happened; it is also written to ``result.json`` in the run folder.

    Raises:
        ConfigError: settings that contradict the dataset, the machine or each other.
        FileNotFoundError: the dataset does not exist.
        FileExistsError: the run folder holds another run.
        FolderInUseError: a job that is at work has the run folder.
    """
    gc.collect()  # streaming gives up a folder only when the earlier run's dataset is collected
    _check_machine(settings)
    if settings.trainer == "composer":
        from . import composer_host as host
    else:
        from . import loop_host as host
    host.join_ranks()
    ranks = Ranks()
    description = read_description(settings.data.path)
    ranks.on_every_rank(lambda: check_data(settings, description, ranks.world_size))
    check_method(settings)
    if settings.autoresume and (finished := ranks.on_rank_zero(lambda: _finished(settings))) is not None:
        return finished
    seed_generators(settings.seed)
    task = ranks.on_every_rank(lambda: build_task(settings.model, description))
    loaders = build_loaders(settings, description, ranks=ranks.world_size)
    run = host.Host(settings, task, loaders)
    lock = None if is_remote(settings.folder) else RunLock(settings.folder, what="ted-stream train", lends=True)
    config = ranks.on_rank_zero(lambda: _config_before(settings))
    try:
        if lock is not None:
            ranks.on_rank_zero(lock.acquire)
        # When hardly anything can be refused any more.
        ranks.on_rank_zero(lambda: claim_folder(settings, length=len(loaders.train)))
        data = loaders.prunable
        full_epoch = full_epoch_forwards(data, loaders.train, world_size=ranks.world_size)
        sizes = {"samples": data.full_epoch_size, "full_epoch": full_epoch, "all_tokens": description.tokens("train")}
        result = result_of(settings, run.fit(), **sizes)
        if result.model is not None:
            save_model(task.network, settings.folder, settings.data.path)
        if ranks.rank == 0:
            write_bytes(join(settings.folder, RESULT_FILE), (json.dumps(asdict(result), indent=2) + "\n").encode())
    except (ValueError, FileExistsError):  # refused after all: the folder is still the former run's, or nobody's
        if ranks.rank == 0:
            _put_back(settings, config)
        raise
    finally:
        if lock is not None:
            lock.release()
    return result


def _config_before(settings: Settings) -> bytes | None:
    """The settings of the run that is gone on with, if one is."""
    return _config_in(settings.folder) if settings.autoresume or settings.load_path else None


def _put_back(settings: Settings, config: bytes | None) -> None:
    """Leave the settings of the run that was not gone on with; none where none were, and no run has begun."""
    folder = settings.folder
    if config is not None:
        write_bytes(join(folder, CONFIG_FILE), config)
    elif not is_remote(folder) and (settings.autoresume or settings.load_path is not None):
        begun = (name for name in LEFTOVERS if name not in (CONFIG_FILE, METRICS_FILE))
        if not any(map(exists, (join(folder, name) for name in begun))):
            Path(folder, CONFIG_FILE).unlink(missing_ok=True)


def _config_in(folder: str) -> bytes | None:
    try:
        return read_bytes(join(folder, CONFIG_FILE))
    except FileNotFoundError:
        return None


def _finished(settings: Settings) -> Result | None:
    """The result of the very run that the settings ask for, if its folder holds it.

    Raises:
        ConfigError: it holds one of another trainer.
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
    print(f"The run in {settings.folder} has finished; this is what it did.", file=sys.stderr)
    return Result(**result)


def check_method(settings: Settings) -> None:
    """Refuse a method that cannot run as it is to.

    Raises:
        ConfigError: settings of the pruning that contradict each other.
    """
    pruning = settings.pruning
    if pruning.value is None:
        return
    try:
        by_tokens = pruning.progress == "tokens"
        check_settings(pruning.value, None if by_tokens else pruning.progress, allow_other_settings=False)
        if by_tokens:
            RunPlan(method=pruning.value, num_samples=1, epochs=2).forecast({}, progress="tokens")
    except ValueError as error:
        raise ConfigError(f"pruning: {error}") from error


def _check_machine(settings: Settings) -> None:
    if settings.trainer == "loop":
        return
    if find_spec("composer") is None:
        raise ConfigError(
            "composer is not installed; it comes with the extra 'composer' of ted-stream. Install that: pip install "
            '"ted-stream[composer]"; or set trainer=loop, which needs PyTorch alone.'
        )
    if settings.precision != "fp32" and not torch.cuda.is_available():
        raise ConfigError(
            f"precision is {settings.precision}, which Composer trains with on a GPU alone, and there is none; set "
            "precision=fp32, or trainer=loop."
        )


def check_data(settings: Settings, description: Description, ranks: int) -> None:
    """Refuse settings that do not fit the dataset or the number of ranks.

    Raises:
        ConfigError: saying which, and what to set.
    """
    fitting = MODELS_OF[description.kind]
    if settings.model.name not in fitting:
        raise ConfigError(
            f"model.name: {settings.model.name} cannot train on {settings.data.path}, which holds {description.kind}; "
            f"set one of {', '.join(fitting)}."
        )
    if settings.pruning.progress == "tokens":
        _check_lengths(settings.data.path, description)
    if settings.model.pretrained is not None:
        refuse_other_tokenizer(settings.model, settings.data.path)
    valid = AUGMENTATIONS[description.kind]
    if settings.data.augment not in valid:
        raise ConfigError(
            f"data.augment: {settings.data.augment} is not for {settings.data.path}, which holds {description.kind}; "
            f"for these there is {', '.join(valid)}."
        )
    if (settings.data.image_size is None) == (description.kind == "jpeg"):
        raise ConfigError(
            f"data.image_size is {settings.data.image_size}, but {settings.data.path} holds {description.kind}; "
            "set it for JPEGs, for example to 224, and for nothing else."
        )
    if is_remote(settings.data.path) and settings.data.cache is None:
        raise ConfigError(f"data.cache: {settings.data.path} is remote; name a local folder for its shards.")
    if settings.data.in_memory:
        _check_in_memory(settings, description)
    elif settings.data.drop_last:
        raise ConfigError(
            "data.drop_last needs data.in_memory=true: what streaming's workers would leave out is not the same on "
            "every number of workers; set data.drop_last=false."
        )
    for name in ("batch_size", "eval_batch_size"):
        size = getattr(settings.data, name)
        if size % ranks:
            raise ConfigError(f"data.{name} is {size}, which {ranks} ranks cannot share equally.")
    if settings.fsdp and settings.model.dtype == "bfloat16":
        raise ConfigError(
            "fsdp shards weights of one dtype, and with model.dtype=bfloat16 adapters have another; set "
            "model.dtype=float32, or fsdp=false."
        )
    if settings.fsdp and settings.trainer == "loop" and ranks == 1:
        raise ConfigError(
            "fsdp shards over ranks, and there is one; launch several (torchrun --nproc-per-node 8 -m ted_stream.cli "
            "train …), or set fsdp=false."
        )


def _check_lengths(path: str, description: Description) -> None:
    """Refuse a schedule by tokens where the dataset does not tell those of its samples."""
    tokens = description.tokens("train")
    if tokens is None:
        raise ConfigError(
            f"pruning.progress: tokens, but {path} holds {description.kind}, of which none were counted; set samples."
        )
    try:
        lengths = read_lengths(path, "train")
    except ValueError as error:
        raise ConfigError(f"pruning.progress: tokens, but {error}") from error
    samples = description.samples["train"]
    if (len(lengths), int(lengths.sum())) != (samples, tokens):
        raise ConfigError(
            f"pruning.progress: tokens, but the lengths in {path}/train are of {len(lengths)} samples and "
            f"{lengths.sum()} tokens, and the dataset has {samples} and {tokens}; prepare it again."
        )


def _check_in_memory(settings: Settings, description: Description) -> None:
    data = settings.data
    if description.kind != "images":
        raise ConfigError(
            f"data.in_memory holds decoded images, and {data.path} holds {description.kind}; set data.in_memory=false."
        )
    if is_remote(data.path):
        raise ConfigError(f"data.in_memory: {data.path} is remote; copy it to a local disk, or set it to false.")
    if data.num_workers:
        raise ConfigError(
            f"data.num_workers is {data.num_workers}, but with data.in_memory nothing is read; set data.num_workers=0."
        )


def claim_folder(
    settings: Settings,
    leftovers: Sequence[str] = LEFTOVERS,
    *,
    length: int | None = None,
    goes_on: bool | None = None,
) -> None:
    """Make the run folder this run's own, and keep its settings there; called on rank 0 for all.

    Args:
        settings: of the run.
        leftovers: names of what a run of this kind leaves in its folder.
        length: batches of an epoch on full data, of a run that may go on for longer than it was begun for.
        goes_on: whether with what the folder holds; by default with ``autoresume`` or ``load_path``.

    Raises:
        ConfigError: the settings go on with a run of another trainer, of other settings, or for less than it.
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


def _refuse_without_checkpoint(settings: Settings) -> None:
    """Refuse to begin a run again that has ended, and left nothing to go on from."""
    if exists(join(settings.folder, RESULT_FILE)) and not _has_checkpoint(settings):
        raise FileExistsError(
            f"{settings.folder} holds a run that has finished, and no checkpoints to go on from; set autoresume=false "
            "and overwrite=true to replace it, or folder= to another place."
        )


def _has_checkpoint(settings: Settings) -> bool:
    """Whether there is a checkpoint to go on from: the one that is named, or the newest, as a trainer names it."""
    folder = join(settings.folder, CHECKPOINTS)
    if settings.load_path is not None or any(exists(join(folder, name)) for name in _NEWEST):
        return True
    # Composer's link is gone for a moment, and made anew after a kill in it.
    return not is_remote(folder) and any(Path(folder).glob("ep*-ba*-rank0.pt"))


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
    return cast(DictConfig, OmegaConf.create((_config_in(settings.folder) or b"").decode()))
