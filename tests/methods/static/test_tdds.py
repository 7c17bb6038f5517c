"""TDDS against the paper's formula, with all passes in memory."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from surrogates import random_logits, record, scored_batch, softmax
from torch import Tensor

from ted_stream.methods.static import tdds
from ted_stream.methods.static.tdds import TDDS

N, C = 23, 4


def record_passes(method: TDDS, logits: Tensor, batch: int = 9):
    """Of logits (passes, N, C)."""
    parts = torch.arange(N).split(batch)
    return record(
        method,
        [
            [scored_batch(torch.zeros(len(rows), 1), of_pass[rows], size=len(rows)) for rows in parts]
            for of_pass in logits
        ],
    )


def by_the_paper(logits: NDArray[np.float32], window: int, beta: float) -> NDArray[np.float64]:
    p, epochs, scores = softmax(logits), len(logits), np.zeros(logits.shape[1])
    for n in range(logits.shape[1]):
        d = [np.abs(p[t + 1, n] * (np.log(p[t + 1, n]) - np.log(p[t, n]))).sum() for t in range(epochs - 1)]
        for k in range(epochs - window + 1):
            part = np.array(d[k : k + window - 1])
            spread = np.sqrt(((part - part.mean()) ** 2).sum())
            scores[n] += beta * (1 - beta) ** (epochs - window - k) * spread
    return scores


@pytest.mark.parametrize(("epochs", "window", "beta"), [(30, 10, 0.9), (12, 5, 0.3), (6, 6, 0.9), (4, 3, 1.0)])
def test_is_the_papers_formula(epochs: int, window: int, beta: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tdds, "_BLOCK", 5)
    method, logits = TDDS(epochs=epochs, window=window, beta=beta), random_logits(epochs, N, C)
    recorded = record_passes(method, logits)
    assert recorded.columns["differences"].shape == (N, epochs - 1)
    found = method.score(recorded, keep=None, seed=0)
    np.testing.assert_allclose(found.scores, by_the_paper(logits.numpy(), window, beta), rtol=2e-5)


def test_the_defaults_are_the_papers() -> None:
    assert TDDS.passes_every_epoch
    assert repr(TDDS()) == "TDDS(epochs=30, window=10, beta=0.9)"


def test_probabilities_that_underflow_count_nothing() -> None:
    logits = random_logits(4, N, C)
    logits[1, :, 0] = -200
    method = TDDS(epochs=4, window=3)
    assert np.isfinite(method.score(record_passes(method, logits), keep=None, seed=0).scores).all()


def test_later_passes_do_not_count() -> None:
    method, logits = TDDS(epochs=5, window=4), random_logits(8, N, C)
    five, eight = (method.score(record_passes(method, part), keep=None, seed=0) for part in (logits[:5], logits))
    np.testing.assert_array_equal(five.scores, eight.scores)


def test_too_few_passes_are_refused() -> None:
    method = TDDS(epochs=6, window=3)
    with pytest.raises(ValueError, match=r"differences of 3 pairs of epochs, but epochs=6 asks for 5"):
        method.score(record_passes(method, random_logits(4, N, C)), keep=None, seed=0)


def test_a_surrogate_that_diverged_is_refused() -> None:
    method, logits = TDDS(epochs=4, window=3), random_logits(4, N, C)
    logits[2, 3] = torch.nan
    with pytest.raises(ValueError, match="the first, sample 3, nan"):
        method.score(record_passes(method, logits), keep=None, seed=0)
    for outputs in (torch.zeros(4, 3, C), None):
        with pytest.raises(ValueError, match=r"needs logits \(B, C\)"):
            method.of_batch(scored_batch(torch.zeros(4, 1), outputs, size=4), {}, 1)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"window": 2}, r"window is 2 of epochs=30, but must lie in \[3, epochs\]"),
        ({"epochs": 9}, "window is 10 of epochs=9"),
        ({"beta": 0.0}, "beta is 0.0"),
        ({"beta": 1.5}, "beta is 1.5"),
    ],
)
def test_settings_out_of_range(settings: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TDDS(**settings)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match=r"window is 3\.0"):
        TDDS(window=3.0)  # pyright: ignore[reportArgumentType]
