"""What a method knows of every sample before the run."""

import hashlib

import numpy as np

from ted_stream.methods import Method
from ted_stream.pruning import ScoreStore
from ted_stream.skip_list import DatasetLayout

__all__ = ["Given"]


class Given:
    """A rank's share of what a method's ``given()`` names. All of it, 4 bytes a sample, is held while this is made.

    Args:
        method: names it.
        layout: of the dataset.
        store: says which samples this rank owns.

    Attributes:
        owned: by name, (n,) float32 of the samples that this rank owns.
        digests: by name, hex sha256 of all of it, by which a resumed run knows that it goes on with the same.

    Raises:
        ValueError: if it is not one number for every sample.
    """

    def __init__(self, method: Method, layout: DatasetLayout, store: ScoreStore) -> None:
        self.owned, self.digests = {}, {}
        for name, values in method.given(layout).items():
            if values.shape != (layout.num_samples,) or values.dtype != np.float32:
                raise ValueError(
                    f"{method!r} gives {name!r} as shape {values.shape} and dtype {values.dtype}, not "
                    f"({layout.num_samples},) float32, one for every sample. Mend the method."
                )
            self.owned[name] = values[store.first_id : store.first_id + len(store.scores)].copy()
            self.digests[name] = hashlib.sha256(values.tobytes()).hexdigest()
