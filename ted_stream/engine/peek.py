"""A look at some samples of a map-style dataset before training, which leaves no trace in this process."""

import pickle
from typing import Any
from warnings import warn

from torch.utils.data import DataLoader

from ted_stream.engine.generators import preserved_generators

__all__ = ["peek"]


def peek(loader: DataLoader, indices: list[int]) -> list[Any] | None:
    """Samples as training will read them: in a worker process of their own where the loader has workers.

    A file that the dataset opens at its first sample is shared, with its position, by all workers that are forked
    later; and what ``worker_init_fn`` opens is there in a worker alone.

    Returns:
        ``None``, with a warning, if a worker cannot send them.
    """
    dataset: Any = loader.dataset
    with preserved_generators():
        if not loader.num_workers:
            return [dataset[index] for index in indices]
        ((pickled, error),) = DataLoader(
            dataset,  # itself and no subset of it: worker_init_fn may look for it in get_worker_info()
            batch_size=len(indices),
            sampler=indices,
            num_workers=1,
            collate_fn=_pickled,
            worker_init_fn=loader.worker_init_fn,
            multiprocessing_context=loader.multiprocessing_context,
            timeout=loader.timeout,
        )
    if pickled is not None:
        try:
            return pickle.loads(pickled)
        except Exception as raised:
            error = repr(raised)
    warn(
        f"Samples of {type(dataset).__name__} cannot be sent from a worker process ({error}), so it was not tried "
        "whether the collate function and batch transforms keep rows in order: if they do not, scores go to the wrong "
        "samples. Let __getitem__ give samples that can be pickled.",
        UserWarning,
        stacklevel=2,
    )
    return None


def _pickled(samples: list[Any]) -> tuple[bytes | None, str]:
    """The samples as bytes, or why not: what fails after this would leave the loader waiting for ever."""
    try:
        return pickle.dumps(samples, pickle.HIGHEST_PROTOCOL), ""
    except Exception as error:
        return None, repr(error)
