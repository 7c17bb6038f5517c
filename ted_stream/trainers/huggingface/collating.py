"""A collate function that is not told of sample ids."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ted_stream.pruning.sample_ids import SAMPLE_ID

__all__ = ["CollateBesideIds"]


class CollateBesideIds:
    """Takes the ids off samples, collates these as always, and gives the batch the ids.

    Hugging Face's collate functions drop columns that the model does not know, or fail on them.

    Args:
        collate: makes a mapping of samples, which are mappings too.
    """

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self.collate = collate

    def __call__(self, samples: Sequence[Any]) -> Any:
        """The batch, with an entry ``sample_id``, (B,) int64, if the samples have one.

        Raises:
            TypeError: if samples or batch are no mappings, which is what the Trainer gives a model.
        """
        if not isinstance(samples[0], Mapping):
            raise TypeError(
                f"The samples are of type {type(samples[0]).__name__}, but Hugging Face's Trainer takes mappings from "
                "the names of the model's arguments. Let the dataset's __getitem__ give a dict."
            )
        if SAMPLE_ID not in samples[0]:
            return self.collate(list(samples))
        batch = self.collate([{name: item for name, item in sample.items() if name != SAMPLE_ID} for sample in samples])
        if not isinstance(batch, Mapping):
            raise TypeError(
                f"The data collator makes a {type(batch).__name__}, but the Trainer gives the model a mapping from the "
                "names of its arguments. Let it make a dict."
            )
        ids: Any = batch
        ids[SAMPLE_ID] = torch.tensor([int(sample[SAMPLE_ID]) for sample in samples])
        return batch
