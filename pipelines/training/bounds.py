"""The bounds of a config's numbers, by dotted name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ted_stream.pruning.settings import check_number

__all__ = ["check_bounds"]

# Of a list every number; whole numbers are those of the schema.
BOUNDS: Mapping[str, tuple[str, str]] = {
    "seed": ("[0, 4294967296)", "it seeds the weights, the order of the samples, augmentation and draws."),
    "device_train_microbatch_size": ("[1, inf)", "null takes the whole batch."),
    "data.batch_size": ("[1, inf)", "it is the samples to a training step."),
    "data.eval_batch_size": ("[1, inf)", "it is the samples to an evaluation step."),
    "data.num_workers": ("[0, inf)", "0 reads in the training process."),
    "data.num_canonical_nodes": ("[1, inf)", "null leaves it to streaming."),
    "data.image_size": ("[1, inf)", "it is the side of the square that an image becomes."),
    "data.color_jitter": ("[0, 1]", "it is the largest share of the change; 0 changes nothing."),
    "model.channels": ("[1, inf)", "they are the channels of each stage."),
    "model.label_smoothing": ("[0, 1)", "it is the share of the target that all classes get."),
    "model.dropout": ("[0, 1)", "it is the share that is dropped."),
    "model.n_layer": ("[1, inf)", "it is a number of layers."),
    "model.n_head": ("[1, inf)", "it is a number of attention heads."),
    "model.n_embd": ("[1, inf)", "it is the width of the model."),
    "model.lora_r": ("[1, inf)", "it is the rank of the adapters; null has none."),
    "model.lora_alpha": ("[1, inf)", "adapters are multiplied by it, divided by lora_r."),
    "model.lora_dropout": ("[0, 1)", "it is the share that is dropped."),
    "optimizer.lr": ("(0, inf)", "it is the learning rate."),
    "optimizer.momentum": ("[0, 1)", "it is the weight of the steps before."),
    "optimizer.weight_decay": ("[0, inf)", "0 decays nothing."),
    "optimizer.trust_coefficient": ("(0, inf)", "it scales the learning rate of each layer."),
    "optimizer.betas": ("[0, 1)", "they are the weights of the steps before."),
    "scheduler.final": ("[0, inf)", "it is the learning rate at the end as a share of the start."),
    "scheduler.gamma": ("(0, inf)", "the learning rate is multiplied by it."),
    "scheduler.max_lr": ("(0, inf)", "it is the largest learning rate."),
    "scheduler.pct_start": ("(0, 1)", "it is the share of the run in which the learning rate rises."),
    "scheduler.div_factor": ("(0, inf)", "the learning rate begins at max_lr divided by it."),
    "scheduler.final_div_factor": ("(0, inf)", "the learning rate ends at its first value divided by it."),
}
LENGTHS = {"optimizer.betas": 2}  # of lists; all others hold one number or more


def check_bounds(settings: Any) -> None:
    """Refuse numbers that cannot be meant.

    Args:
        settings: `Settings`, whose null values are left alone.

    Raises:
        ValueError: naming the setting, its value, the bound and what it means.
    """
    for name, (bounds, meaning) in BOUNDS.items():
        value = settings
        for part in name.split("."):
            value = getattr(value, part)
        if value is None:
            continue
        numbers = value if isinstance(value, list) else [value]
        length = LENGTHS.get(name)
        if not numbers or (length is not None and len(numbers) != length):
            raise ValueError(f"{name} is {value}, expected {length or 'at least one'} in a list: {meaning}")
        for number in numbers:
            check_number(name, number, bounds, fix=meaning)
