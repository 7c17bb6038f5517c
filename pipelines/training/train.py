"""One training run: settings in, a result out."""

from __future__ import annotations

import gc
import json
import shutil
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from composer import DataSpec, Trainer
from composer.core import Evaluator
from composer.models import ComposerModel
from composer.utils import dist, get_device, reproducibility
from composer.utils.parallelism import FSDP2Config
from omegaconf import OmegaConf
from streaming import StreamingDataset
from torch.utils.data import DataLoader

from ted_stream import DataPruning, PrunedStreamingDataset
from ted_stream.engine import Ranks
from ted_stream.files import is_remote, join, write_bytes
from ted_stream.reading import Prunable

from ..corpora.prepared import Description, read_description
from .image_batches import DecodeJpeg, ImageTransform
from .models import classifier, gpt
from .optimizers import build_optimizer, build_scheduler
from .settings import AUGMENTATIONS, CHOICES, ConfigError, Settings, epochs
from .text_batches import PaddingCollator

__all__ = ["RESULT_FILE", "Result", "pruning_of", "train"]

RESULT_FILE = "result.json"
CROP_PADDING = 4
# Weights stay fp32 and autocast does the rest, and checkpoints have one file: both as without sharding.
FSDP = FSDP2Config(state_dict_type="full", mixed_precision="FULL")
# What a run leaves in its folder; only this is removed when a run is replaced.
LEFTOVERS = ("skip_lists", "scores", "checkpoints", "run.json", "config.yaml", "manifest.parquet", RESULT_FILE)


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a run did, as kept in ``result.json``.

    Attributes:
        run_name: of the settings.
        method: of the settings.
        seed: of the settings.
        epochs: trained.
        metrics: test metrics at the end, by name; accuracy in [0, 1], cross entropies in nats.
        samples: in the training split.
        forwarded: samples put through the model in training, counted by Composer over all ranks.
        save_ratio: 1 − forwarded / (samples · epochs).
        planned_save_ratio: what the schedule promised; 0 without pruning, ``None`` where the method decides as it goes.
        seconds: of training, evaluation apart.
        wall_seconds: of this process' fit, with evaluation and checkpoints.
        folder: of the run.
        skip_lists: folder of the run's skip-lists, if it pruned.
        manifest: Parquet of kept samples with scores, if it pruned.
    """

    run_name: str
    method: str
    seed: int
    epochs: int
    metrics: dict[str, float]
    samples: int
    forwarded: int
    save_ratio: float
    planned_save_ratio: float | None
    seconds: float
    wall_seconds: float
    folder: str
    skip_lists: str | None
    manifest: str | None


class ImageShards(StreamingDataset):
    """Prepared images as (image, label)."""

    def __getitem__(self, at: Any) -> Any:
        """The sample: a uint8 tensor of the stored shape, and its label."""
        sample = super().__getitem__(at)
        return torch.from_numpy(sample["image"].copy()), sample["label"]


class PrunedImageShards(Prunable, ImageShards):
    """Prepared images as (image, label), of which pruned ones are left out."""


class JpegShards(StreamingDataset):
    """Prepared JPEGs as (image, label)."""

    def __init__(self, *args: Any, decode: DecodeJpeg, **kwargs: Any) -> None:
        """Take the arguments of StreamingDataset and what makes pixels of a file's bytes."""
        super().__init__(*args, **kwargs)
        self.decode = decode

    def __getitem__(self, at: Any) -> Any:
        """The sample: a uint8 tensor (size, size, 3), and its label.

        Raises:
            ValueError: the image cannot be decoded.
        """
        sample = super().__getitem__(at)
        try:
            return self.decode(sample["image"]), sample["label"]
        except OSError as error:
            where = self.streams[0].local
            raise ValueError(f"sample {at} of {where} cannot be decoded ({error}); its file is damaged.") from error


class PrunedJpegShards(Prunable, JpegShards):
    """Prepared JPEGs as (image, label), of which pruned ones are left out."""


# By kind of prepared dataset: what is trained on, and what is tested on.
DATASETS: dict[str, tuple[type[Prunable], type[StreamingDataset]]] = {
    "images": (PrunedImageShards, ImageShards),
    "jpeg": (PrunedJpegShards, JpegShards),
    "instructions": (PrunedStreamingDataset, StreamingDataset),
}


def train(settings: Settings) -> Result:
    """Train as the settings say.

    Args:
        settings: from `load_settings`.

    Returns:
        What happened; it is also written to ``result.json`` in the run folder.

    Raises:
        ConfigError: settings that contradict the dataset or each other.
        FileNotFoundError: the dataset does not exist.
        FileExistsError: the run folder holds another run.
    """
    gc.collect()  # streaming gives up a folder only when the earlier run's dataset is collected
    dist.initialize_dist(get_device(None))
    description = read_description(settings.data.path)
    _check(settings, description)
    pruning = pruning_of(settings)
    folder = settings.folder
    reproducibility.seed_all(settings.seed)
    model = _model(settings, description)
    train_data, test_data, train_set = _loaders(settings, description)
    steps = len(train_data.dataloader) * epochs(settings)  # pyright: ignore[reportArgumentType]
    optimizer = build_optimizer(settings.optimizer, model)
    Ranks().on_rank_zero(lambda: _claim(settings))  # when nothing can be refused any more
    trainer = Trainer(
        model=model,
        train_dataloader=train_data,
        eval_dataloader=Evaluator(label="test", dataloader=test_data),
        eval_interval=settings.eval_interval,
        max_duration=settings.max_duration,
        optimizers=optimizer,
        schedulers=build_scheduler(settings.scheduler, optimizer, steps=steps),
        step_schedulers_every_batch=True,
        algorithms=pruning,
        seed=settings.seed,
        run_name=settings.run_name,
        precision=settings.precision,
        parallelism_config={"fsdp": FSDP} if settings.fsdp else None,
        device_train_microbatch_size=settings.device_train_microbatch_size,
        compile_config={} if settings.compile else None,
        progress_bar=settings.progress_bar,
        save_folder=join(folder, "checkpoints") if settings.save_interval else None,
        save_interval=settings.save_interval or "1ep",
        autoresume=settings.autoresume,
        load_path=settings.load_path,
    )
    started = time.perf_counter()
    try:
        trainer.fit()
        wall = time.perf_counter() - started
        result = _result(settings, trainer, train_set, pruning, wall)
    finally:
        trainer.close()
    if dist.get_global_rank() == 0:
        write_bytes(join(folder, RESULT_FILE), (json.dumps(asdict(result), indent=2) + "\n").encode())
    return result


def _check(settings: Settings, description: Description) -> None:
    is_text = settings.model.name == "gpt"
    if is_text != (description.kind == "instructions"):
        raise ConfigError(
            f"model.name: {settings.model.name} cannot train on {settings.data.path}, which holds {description.kind}."
        )
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
    if settings.autoresume and settings.save_interval is None:
        raise ConfigError("autoresume goes on from checkpoints: set save_interval, for example to 1ep.")
    world = dist.get_world_size()
    for name in ("batch_size", "eval_batch_size"):
        size = getattr(settings.data, name)
        if size % world:
            raise ConfigError(f"data.{name} is {size}, which {world} ranks cannot share equally.")


def _claim(settings: Settings) -> None:
    """Make the run folder this run's own, and keep its settings there; called on rank 0 for all."""
    folder = settings.folder
    goes_on = settings.autoresume or settings.load_path is not None
    if not is_remote(folder) and not goes_on:
        found = [name for name in LEFTOVERS if (Path(folder) / name).exists()]
        if found and not settings.overwrite:
            raise FileExistsError(
                f"{folder} holds an earlier run ({', '.join(found)}); set overwrite=true to replace it, "
                "autoresume=true to go on with it, or folder= to another place."
            )
        for name in found:
            path = Path(folder) / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    write_bytes(join(folder, "config.yaml"), OmegaConf.to_yaml(OmegaConf.structured(settings)).encode())


def _model(settings: Settings, description: Description) -> ComposerModel:
    options = {
        option.name: value
        for option in fields(settings.model)
        if option.name in CHOICES["model"][settings.model.name]
        and (value := getattr(settings.model, option.name)) is not None
    }
    if description.kind == "instructions":
        return gpt(vocab_size=description.vocab_size, max_length=description.max_length, **options)
    in_channels = len(description.mean)
    return classifier(settings.model.name, classes=len(description.classes), in_channels=in_channels, **options)


def _loaders(settings: Settings, description: Description) -> tuple[DataSpec, DataSpec, StreamingDataset]:
    """Training data, test data, and the dataset of the former."""
    data, world = settings.data, dist.get_world_size()
    is_text = description.kind == "instructions"
    remote = data.path if is_remote(data.path) else None
    local = data.path if remote is None else data.cache
    assert local is not None, "checked before"
    train_class, test_class = DATASETS[description.kind]
    train_decodes, test_decodes = {}, {}
    if description.kind == "jpeg":
        assert data.image_size is not None, "checked before"
        train_decodes["decode"] = DecodeJpeg(data.image_size, augment=data.augment == "random_resized_crop")
        test_decodes["decode"] = DecodeJpeg(data.image_size, augment=False)
    train_set = train_class(
        remote=remote and join(remote, "train"),
        local=join(local, "train"),
        batch_size=data.batch_size // world,
        shuffle=data.shuffle,
        shuffle_algo=data.shuffle_algo,
        shuffle_seed=settings.seed,
        num_canonical_nodes=data.num_canonical_nodes,
        skip_list=data.skip_list,
        **train_decodes,
    )
    test_set = test_class(
        remote=remote and join(remote, "test"),
        local=join(local, "test"),
        batch_size=data.eval_batch_size // world,
        shuffle=False,
        **test_decodes,
    )
    collate = PaddingCollator(description.pad_id) if is_text else None

    def spec(dataset: StreamingDataset, batch_size: int, padding: int | None) -> DataSpec:
        loader = DataLoader(
            dataset,
            batch_size=batch_size // world,
            num_workers=data.num_workers,
            persistent_workers=data.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            collate_fn=collate,
        )
        if is_text:
            return DataSpec(loader)
        transform = ImageTransform(
            description.mean,
            description.std,
            padding=padding,
            channels_last=bool(settings.model.channels_last),
        )
        return DataSpec(loader, microbatch_transforms=transform)

    padding = CROP_PADDING if data.augment == "crop_flip" else None
    return spec(train_set, data.batch_size, padding), spec(test_set, data.eval_batch_size, None), train_set


def pruning_of(settings: Settings) -> DataPruning | None:
    """The algorithm that prunes a run, if one does.

    Raises:
        ConfigError: settings that contradict each other.
    """
    pruning = settings.pruning
    if pruning.value is None:
        return None
    try:
        return DataPruning(
            pruning.value,
            folder=settings.folder,
            seed=settings.seed,
            progress=pruning.progress,
            output_layer=pruning.output_layer,
        )
    except ValueError as error:
        raise ConfigError(f"pruning: {error}") from error


def _result(
    settings: Settings, trainer: Trainer, train_set: StreamingDataset, pruning: DataPruning | None, wall: float
) -> Result:
    state, folder = trainer.state, settings.folder
    forwarded = state.timestamp.sample.value
    trained = state.timestamp.epoch.value
    planned = 0.0 if pruning is None else pruning.engine.plan.save_ratio
    pruned = pruning is not None and any(record.keep_ratio < 1 for record in pruning.records)
    return Result(
        run_name=settings.run_name,
        method=settings.pruning.method,
        seed=settings.seed,
        epochs=trained,
        metrics={name: float(metric.compute()) for name, metric in state.eval_metrics["test"].items()},
        samples=train_set.size,
        forwarded=forwarded,
        save_ratio=1 - forwarded / (train_set.size * trained),
        planned_save_ratio=planned,
        seconds=state.timestamp.total_wct.total_seconds(),
        wall_seconds=wall,
        folder=folder,
        skip_lists=join(folder, "skip_lists") if pruning is not None else None,
        manifest=join(folder, "manifest.parquet") if pruned else None,
    )
