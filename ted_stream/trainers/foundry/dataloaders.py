"""llm-foundry's dataloaders of training data, over datasets or with a sampler that can be pruned."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader

from ted_stream.extras import optional_imports
from ted_stream.pruning.sample_ids import SAMPLE_ID
from ted_stream.reading import Prunable
from ted_stream.sampler import PrunedSampler

with optional_imports():
    from llmfoundry.data import text_data
    from llmfoundry.data.finetuning import dataloader as finetuning
    from llmfoundry.data.finetuning.tasks import DatasetConstructor, StreamingFinetuningDataset
    from llmfoundry.data.text_data import StreamingTextDataset

if TYPE_CHECKING:
    from composer.core import DataSpec

__all__ = ["PrunedFinetuningDataset", "PrunedTextDataset", "pruned_finetuning", "pruned_text"]


class PrunedFinetuningDataset(Prunable, StreamingFinetuningDataset):
    """llm-foundry's dataset for instruction tuning, of which samples can be pruned."""


class PrunedTextDataset(Prunable, StreamingTextDataset):
    """llm-foundry's dataset for pretraining, of which samples, each a row of the model's input, can be pruned."""


class _PrunedConstructor(DatasetConstructor):
    @property
    def streaming_dataset_class(self) -> type[PrunedFinetuningDataset]:
        return PrunedFinetuningDataset


class CollateBesideIds:
    """Takes the ids off samples, collates these as llm-foundry does, which drops the ids, and gives them to the batch.

    Args:
        collate: makes a mapping of samples.
    """

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self.collate = collate

    def __call__(self, samples: Sequence[Any]) -> Any:
        """The batch, with an entry ``sample_id``, (B,) int64, if the samples have one."""
        if not _has_id(samples[0]):
            return self.collate(list(samples))
        parts = [_parted(sample) for sample in samples]
        batch = self.collate([sample for sample, _ in parts])
        batch[SAMPLE_ID] = torch.tensor([sample_id for _, sample_id in parts])
        return batch


def _has_id(sample: Any) -> bool:
    return SAMPLE_ID in sample if isinstance(sample, Mapping) else isinstance(sample, tuple)


def _parted(sample: Any) -> tuple[Any, int]:
    if isinstance(sample, Mapping):
        return {name: item for name, item in sample.items() if name != SAMPLE_ID}, sample[SAMPLE_ID]
    tokens, sample_id = sample
    return tokens, sample_id


def pruned_finetuning(*, dataset: dict[str, Any], **arguments: Any) -> DataSpec:
    """llm-foundry's ``finetuning`` dataloader, whose samples can be pruned.

    Args:
        dataset: the section of the config.
        arguments: all others of ``build_finetuning_dataloader``.

    Raises:
        ValueError: if samples would be packed across batches, or ranks would share the samples of a dataset that is
            not streamed.
    """
    if dataset.get("packing_ratio") not in (None, 1):
        raise ValueError(
            f"train_loader.dataset.packing_ratio is {dataset['packing_ratio']!r}, so samples that fit no row of their "
            "batch would be kept back for later ones, or dropped, and no epoch would train on what its list keeps. "
            "Leave packing_ratio out, or take the pruning out of algorithms."
        )
    streamed = dataset.get("remote") is not None or dataset.get("streams") is not None
    if streamed:
        with _replaced(finetuning, "dataset_constructor", _PrunedConstructor()):
            return _with_ids(finetuning.build_finetuning_dataloader(dataset=dataset, **arguments))
    if (dataset.get("replication") or 1) > 1:
        raise ValueError(
            f"train_loader.dataset.replication is {dataset['replication']}, but of a dataset that is not streamed "
            "every rank gets samples of its own where they are pruned. Leave replication out, or stream the dataset: "
            "remote and local instead of hf_name."
        )
    return _sampled(finetuning.build_finetuning_dataloader(dataset=dataset, **arguments), dataset)


def pruned_text(*, dataset: dict[str, Any], **arguments: Any) -> DataSpec:
    """llm-foundry's ``text`` dataloader, whose samples can be pruned.

    Args:
        dataset: the section of the config.
        arguments: all others of ``build_text_dataloader``.
    """
    with _replaced(text_data, "StreamingTextDataset", PrunedTextDataset):
        return _with_ids(text_data.build_text_dataloader(dataset=dataset, **arguments))


@contextmanager
def _replaced(module: ModuleType, name: str, value: Any) -> Iterator[None]:
    """Let a builder make another dataset: which one it makes is no argument of it, but a name of its module."""
    stock = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, stock)


def _with_ids(spec: DataSpec) -> DataSpec:
    """The same batches, with the ids of their samples where the dataset gives these."""
    loader: Any = spec.dataloader
    loader.collate_fn = CollateBesideIds(loader.collate_fn)
    return spec


def _sampled(spec: DataSpec, dataset: Mapping[str, Any]) -> DataSpec:
    """The same samples in the same order, from a sampler that can leave some out."""
    stock: Any = spec.dataloader
    sampler = PrunedSampler(
        stock.dataset,
        shuffle=dataset["shuffle"],
        seed=dataset.get("shuffle_seed", 0),
        drop_last=stock.drop_last,
        name=f"{dataset['hf_name']}/{dataset['split']}",
    )
    same = ("batch_size", "collate_fn", "drop_last", "num_workers", "pin_memory", "prefetch_factor", "timeout")
    arguments = {name: getattr(stock, name) for name in (*same, "persistent_workers")}
    spec.dataloader = DataLoader(stock.dataset, sampler=sampler, **arguments)
    return spec
