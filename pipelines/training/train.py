"""One training run: settings in, a result out, through the trainer that they name."""

from __future__ import annotations

import gc
import json
from dataclasses import asdict
from importlib.util import find_spec

import torch

from ted_stream.engine import Ranks, full_epoch_forwards
from ted_stream.engine.generators import seed_generators
from ted_stream.engine.plan import RunPlan
from ted_stream.engine.run_folder import RunLock
from ted_stream.files import is_remote, join, write_bytes
from ted_stream.trainers.requirements import check_settings

from ..corpora.prepared import Description, content_digest, read_description
from ..corpora.tokens import read_lengths
from .claiming import claim_folder, finished_result, kept_before, put_back
from .datasets import build_loaders
from .hub_models import refuse_other_tokenizer, save_model
from .results import RESULT_FILE, Result, result_of
from .settings import AUGMENTATIONS, MODELS_OF, ConfigError, Settings
from .tasks import build_task

__all__ = ["RESULT_FILE", "Result", "check_data", "check_method", "train"]


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
    data = ranks.on_rank_zero(lambda: content_digest(settings.data.path))
    if settings.autoresume and (finished := ranks.on_rank_zero(lambda: finished_result(settings, data))) is not None:
        return finished
    seed_generators(settings.seed)
    task = ranks.on_every_rank(lambda: build_task(settings.model, description))
    loaders = build_loaders(settings, description, ranks=ranks.world_size)
    run = host.Host(settings, task, loaders)
    lock = None if is_remote(settings.folder) else RunLock(settings.folder, what="ted-stream train", lends=True)
    before = ranks.on_rank_zero(lambda: kept_before(settings))
    try:
        if lock is not None:
            ranks.on_rank_zero(lock.acquire)
        # When hardly anything can be refused any more.
        ranks.on_rank_zero(lambda: claim_folder(settings, length=len(loaders.train), data=data))
        prunable = loaders.prunable
        full_epoch = full_epoch_forwards(prunable, loaders.train, world_size=ranks.world_size)
        sizes = {
            "samples": prunable.full_epoch_size,
            "full_epoch": full_epoch,
            "all_tokens": description.tokens("train"),
        }
        result = result_of(settings, run.fit(), data=data, **sizes)
        if result.model is not None:
            save_model(task.network, settings.folder, settings.data.path)
        if ranks.rank == 0:
            write_bytes(join(settings.folder, RESULT_FILE), (json.dumps(asdict(result), indent=2) + "\n").encode())
    except (ValueError, FileExistsError):  # refused after all: the folder is still the former run's, or nobody's
        if ranks.rank == 0:
            put_back(settings, before)
        raise
    finally:
        if lock is not None:
            lock.release()
    return result


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
