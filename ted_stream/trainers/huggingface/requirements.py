"""What a run of Hugging Face's Trainer must be for its training set to be pruned; checked before its first batch."""

from typing import Any
from warnings import warn

from torch.utils.data import IterableDataset
from transformers import Trainer

__all__ = ["refuse_pruned", "refuse_wrong_use"]


def refuse_wrong_use(trainer: Trainer) -> None:
    """Refuse data and settings under which samples would be lost, or trained on twice, or scored wrong.

    Raises:
        ValueError: naming the setting, its value and what to change.
    """
    args, dataset = trainer.args, trainer.train_dataset
    if isinstance(dataset, IterableDataset) and not callable(getattr(dataset, "activate", None)):
        raise ValueError(
            f"train_dataset is a {type(dataset).__name__}, an iterable dataset, whose samples cannot be named and so "
            "not be left out. Pass a map-style dataset (of Hugging Face's: without streaming=True), or a "
            "PrunedStreamingDataset."
        )
    if args.max_steps > 0:
        raise ValueError(
            f"max_steps is {args.max_steps}, but a pruned run is planned in epochs, which have different numbers of "
            "steps. Pass num_train_epochs, and leave out max_steps."
        )
    if args.num_train_epochs < 1 or args.num_train_epochs != int(args.num_train_epochs):
        raise ValueError(
            f"num_train_epochs is {args.num_train_epochs}, but a pruned run has whole epochs, at least one. Pass a "
            "whole number."
        )
    if args.group_by_length:
        raise ValueError(
            "group_by_length=True chooses the order of the samples itself, so pruned ones could not be left out. Drop "
            "it."
        )
    if args.dataloader_drop_last:
        raise ValueError(
            "dataloader_drop_last=True would leave out kept samples in every epoch: each rank's last ones, which make "
            "no full batch. Drop it."
        )
    for name in ("split_batches", "dispatch_batches"):
        if getattr(args.accelerator_config, name, None):
            raise ValueError(
                f"accelerator_config has {name}=True, which would share out batches that are shared out already. Drop "
                "it: every rank reads its own samples."
            )
    if getattr(args, "include_tokens_per_second", False):
        raise ValueError(
            "include_tokens_per_second=True counts the tokens of the first epoch as those of all, which pruned epochs "
            "have not. Use include_num_input_tokens_seen='all' instead."
        )
    _refuse_other_parallelism(trainer)


def _refuse_other_parallelism(trainer: Any) -> None:
    args = trainer.args
    if args.n_gpu > 1:
        raise ValueError(
            f"One process would use {args.n_gpu} GPUs through DataParallel, which copies the model at every step. "
            "Start one process for each GPU ('torchrun --nproc-per-node', 'accelerate launch'), or let it see one "
            "alone (CUDA_VISIBLE_DEVICES=0)."
        )
    others = {
        "DeepSpeed": trainer.is_deepspeed_enabled,
        "tensor parallelism": trainer.is_tp_enabled,
        "a parallelism_config": getattr(trainer.accelerator, "parallelism_config", None) is not None,
        "FSDP 1": trainer.is_fsdp_enabled and getattr(trainer.accelerator.state.fsdp_plugin, "fsdp_version", 1) == 1,
        "SageMaker": args.parallel_mode.value.startswith("sagemaker"),
        "XLA": args.parallel_mode.value == "tpu",
    }
    for name, is_used in others.items():
        if is_used:
            raise ValueError(
                f"The run uses {name}, under which scores have not been shown to be right. Use DDP ('torchrun', "
                "'accelerate launch')."
            )
    if trainer.is_fsdp_enabled:
        warn(
            "Pruning under FSDP 2 has been shown to be right in a plain loop and in Composer, and has not been "
            "tried in Hugging Face's Trainer.",
            UserWarning,
            stacklevel=2,
        )


def refuse_pruned(dataset: Any, data: Any) -> None:
    """Refuse to evaluate on a dataset that is pruned itself; one with a sampler is read without it.

    Args:
        dataset: to evaluate on, or several by name.
        data: what is pruned.

    Raises:
        ValueError: if it is the same.
    """
    for each in dataset.values() if isinstance(dataset, dict) else [dataset]:
        if each is data:
            raise ValueError(
                "The dataset to evaluate on is the training dataset, so evaluations would see pruned epochs and "
                "samples with ids, and disturb them. Make a dataset of its own for that."
            )
