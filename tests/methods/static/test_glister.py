"""GLISTER against a naive loop: gradients by autograd, and the head moved explicitly."""

from typing import Any

import numpy as np
import pytest
from last_layers import WithHead, gradient, head_of, kept, mean_loss, own_gradients, recorded_of
from numpy.typing import NDArray
from torch import from_numpy

from ted_stream.methods.static.glister import GLISTER
from ted_stream.pruning.hashing import hash_ids


def validation_rows(size: int, share: int, seed: int) -> NDArray[np.int64]:
    return np.argsort(hash_ids(np.arange(size), seed=seed, epoch=1))[:share]


def naive(recorded: WithHead, rows: NDArray[np.int64], keep: int, rate: float, per_step: int) -> list[int]:
    own, head = own_gradients(recorded), head_of(recorded)
    picks: list[int] = []
    while len(picks) < keep:
        gains = own @ gradient(recorded, rows, head).ravel()
        rest = [row for row in np.argsort(-gains).tolist() if row not in picks]
        for row in rest[: min(per_step, keep - len(picks))]:
            picks.append(row)
            head = head - rate / keep * own[row].reshape(head.shape)
    return picks


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("rate", "per_step"), [(0.0, 1), (0.5, 1), (3.0, 1), (3.0, 4)])
def test_is_the_naive_loop(bias: bool, seed: int, rate: float, per_step: int) -> None:
    recorded = recorded_of(30, seed=seed, bias=bias)
    method = GLISTER(validation=0.2, learning_rate=rate, per_step=per_step)
    for keep in (1, 10, 30):
        expected = naive(recorded, validation_rows(30, 6, seed), keep, rate, per_step)
        assert kept(method.score(recorded, keep=keep, seed=seed).scores, keep) == expected


def test_the_step_changes_what_is_chosen_and_lowers_the_validation_loss() -> None:
    """The validation gradient is that after the step: left as it was at first, it would choose another set."""
    recorded, keep, rate = recorded_of(200, classes=5, width=8), 40, 5.0
    rows, own, head = validation_rows(200, 40, 0), own_gradients(recorded), head_of(recorded)
    losses, chosen = [], []
    for method in (
        GLISTER(validation=0.2, learning_rate=rate, per_step=1),
        GLISTER(validation=0.2, learning_rate=0.0, per_step=1),
    ):
        picks = kept(method.score(recorded, keep=keep, seed=0).scores, keep)
        moved = head - rate / keep * own[picks].sum(0).reshape(head.shape)
        losses.append(float(mean_loss(recorded, rows, from_numpy(moved))))
        chosen.append(set(picks))
    assert len(chosen[0] - chosen[1]) > 5
    assert losses[0] < 0.95 * losses[1]


def test_a_hundredth_is_picked_at_a_time_by_default() -> None:
    recorded = recorded_of(300)
    found = GLISTER().score(recorded, keep=250, seed=0).scores
    np.testing.assert_array_equal(found, GLISTER(per_step=3).score(recorded, keep=250, seed=0).scores)
    assert (found != GLISTER(per_step=1).score(recorded, keep=250, seed=0).scores).any()


@pytest.mark.parametrize(("share", "rows"), [(0.001, 1), (0.1, 3), (1.0, 30)])
def test_the_validation_share(share: float, rows: int) -> None:
    recorded = recorded_of(30)
    found = GLISTER(validation=share, learning_rate=1.0, per_step=1).score(recorded, keep=8, seed=4)
    assert kept(found.scores, 8) == naive(recorded, validation_rows(30, rows, 4), 8, 1.0, 1)


def test_validation_samples_may_be_kept() -> None:
    recorded = recorded_of(30)
    rows = validation_rows(30, 3, 0)
    chosen = kept(GLISTER().score(recorded, keep=10, seed=0).scores, 10)
    assert set(chosen) & set(rows.tolist())


@pytest.mark.parametrize(("size", "width", "block"), [(30, 4, 1 << 22), (1000, 64, 3000)])
def test_equal_samples(size: int, width: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a step, equal samples have equal gains, also if their last digits differ: the hash decides."""
    monkeypatch.setattr("ted_stream.methods.static.last_layer._BLOCK", block)
    recorded = recorded_of(size, classes=10, width=width, twice=True)
    scores = GLISTER(learning_rate=0, per_step=size // 4).score(recorded, keep=size, seed=0).scores
    hashes = hash_ids(np.arange(size), seed=0)
    np.testing.assert_array_equal(scores[::2] > scores[1::2], hashes[::2] < hashes[1::2])


WRONG: dict[str, list[Any]] = {
    "validation": [0, -0.1, 1.1, "0.1", True, None, float("nan")],
    "learning_rate": [-0.1, "0.1", True, None, float("nan"), float("inf")],
    "per_step": [0, -1, 1.5, "9", True],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_a_wrong_setting_is_refused(name: str, value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=rf"^{name} is .* must"):
        GLISTER(**{name: value})
