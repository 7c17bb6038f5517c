"""Memory and time of choosing a subset from what a pass over a large dataset wrote, without the dataset."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ted_stream.methods.static import Recorded, StaticMethod

from ..training.scored_columns import ScoredColumns

__all__ = ["Row", "bench_scoring"]

_EVERY = 0.02  # seconds between looks at the memory


@dataclass(frozen=True, kw_only=True)
class Row:
    """What it took.

    Args:
        written: bytes on the disk.
        writing: seconds to write them, and to make them up.
        choosing: seconds of the method's scores.
        peak: bytes of this process' own memory at most, while choosing, beyond what it had before; pages of files
            that the system keeps in memory are not its own.
    """

    written: int
    writing: float
    choosing: float
    peak: int


class _Peak(threading.Thread):
    """The most memory of its own that the process has while this runs."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.least = self.most = _own_memory()
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(_EVERY):
            self.most = max(self.most, _own_memory())

    def stop(self) -> int:
        self._over.set()
        self.join()
        return self.most - self.least


def _own_memory() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def bench_scoring(method: StaticMethod, *, samples: int, classes: int, features: int, keep: int, folder: Path) -> Row:
    """Scores of random predictions and features, by a method that chooses from those.

    Args:
        method: one that writes ``log_probabilities`` and, with ``needs_features``, ``features``.
        samples: N.
        classes: C.
        features: D.
        keep: how many the method is to keep.
        folder: an empty one, for N·(C + D)·4 bytes.
    """
    rng = np.random.default_rng(0)
    columns = ScoredColumns(folder, samples)
    labels = rng.integers(classes, size=samples)
    begun = time.perf_counter()
    for chunk in range(columns.num_chunks):
        rows = columns.rows_of(chunk)
        logits = rng.standard_normal((len(rows), classes), np.float32)
        logits[np.arange(len(rows)), labels[rows.start : rows.stop]] += 3
        part = {"log_probabilities": logits - np.log(np.exp(logits).sum(1, keepdims=True))}
        if method.needs_features:
            part["features"] = rng.standard_normal((len(rows), features), np.float32)
        columns.write(rows.start, part)
    columns.close()
    writing = time.perf_counter() - begun
    mapped = columns.columns()
    recorded = Recorded(columns=mapped, labels=labels, has_bias=True)
    peak = _Peak()
    peak.start()
    begun = time.perf_counter()
    method.score(recorded, keep=keep, seed=0)
    choosing = time.perf_counter() - begun
    written = sum(path.stat().st_size for path in folder.glob("*.npy"))
    return Row(written=written, writing=writing, choosing=choosing, peak=peak.stop())
