"""How long a sample takes in a run, by which what was saved becomes an estimate of time."""

import time

__all__ = ["Pace"]


class Pace:
    """The seconds that a sample takes, in the fastest of the epochs that this process trained from their beginning.

    Of the fastest, since compilation, caches that fill and whatever else keeps an epoch would be taken for its samples.

    Attributes:
        seconds_per_sample: of an epoch's wall clock, by the samples of all ranks; ``None`` while it is not known.
    """

    def __init__(self) -> None:
        self.seconds_per_sample: float | None = None
        self._began: float | None = None

    def begin(self) -> None:
        """An epoch's samples come next."""
        self._began = time.perf_counter()

    def leave_out(self, seconds: float) -> None:
        """Something else than training took so long, such as evaluation; between two epochs without effect."""
        if self._began is not None:
            self._began += seconds

    def end(self, forwarded: int) -> None:
        """The epoch is over, after so many samples; one that was gone on with in its middle tells nothing."""
        if self._began is not None and forwarded:
            seconds = (time.perf_counter() - self._began) / forwarded
            self.seconds_per_sample = min(seconds, self.seconds_per_sample or seconds)
        self._began = None
