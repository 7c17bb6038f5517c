"""Batches that go through the model in parts: the same scores, lists and gradients, and those of Composer."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from composer_runs import composer_run
from loop_runs import EPOCHS, METHODS, make_loader, make_net, outcome
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from ted_stream import Pruner
from ted_stream.methods import Method

each_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


def out_of_memory(module: nn.Module, args: Any) -> None:
    raise torch.OutOfMemoryError


def train(method: Method, folder: Path, size: int, *, stumbles: str | None = None) -> dict[str, Any]:
    """Train in parts of so many rows.

    Args:
        method: that prunes.
        folder: of the run.
        size: rows of a part.
        stumbles: what goes wrong at every batch, and is tried again: a "part" of it, or the "batch".
    """
    model = make_net(dropout=0.0)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    with Pruner(method, model, make_loader(), epochs=EPOCHS, folder=folder) as pruner:
        scheduler = pruner.stretch(CosineAnnealingLR(optimizer, EPOCHS * pruner.full_length))
        for _ in pruner:
            for batch in pruner.batches():
                if stumbles == "batch":
                    for x, y in pruner.microbatches(batch, 4):
                        pruner.loss(F.cross_entropy(model(x), y)).backward()
                    optimizer.zero_grad()
                for x, y in pruner.microbatches(batch, size):
                    if stumbles == "part":
                        hook = model.head.register_forward_pre_hook(out_of_memory)
                        with pytest.raises(torch.OutOfMemoryError):
                            model(x)
                        hook.remove()
                    pruner.loss(F.cross_entropy(model(x), y)).backward()
                optimizer.step()
                optimizer.zero_grad()
                scheduler.step()
    return outcome(pruner, model)


@pytest.mark.long
@each_method
def test_parts_are_composers_microbatches(method: Method, tmp_path: Path) -> None:
    """But for rounding: of a float64 model Composer keeps the loss, and a part's share of it, in float32."""
    expected = composer_run(method, str(tmp_path / "composer"), make_loader(), 3)
    found = train(method, tmp_path / "loop", 3)
    for what in ("digests", "kept", "forwarded"):
        assert found[what] == expected[what]
    assert found["scores"] == pytest.approx(expected["scores"], rel=1e-5)
    assert found["weights"] == pytest.approx(expected["weights"], rel=1e-5)


@pytest.mark.quick("ted")
@each_method
def test_parts_make_what_whole_batches_make(method: Method, tmp_path: Path) -> None:
    whole = train(method, tmp_path / "whole", 8)
    for size in (1, 3):
        found = train(method, tmp_path / str(size), size)
        assert found["digests"] == whole["digests"]
        assert found["weights"] == pytest.approx(whole["weights"], rel=1e-9)


@pytest.mark.long
@pytest.mark.parametrize("stumbles", ["part", "batch"])
@pytest.mark.parametrize("name", ["ted", "importance"])
def test_what_is_tried_again_counts_once(name: str, stumbles: str, tmp_path: Path) -> None:
    """As after running out of memory: with the same part once more, or with the whole batch in smaller ones."""
    expected = train(METHODS[name], tmp_path / "smooth", 3)
    assert train(METHODS[name], tmp_path / "again", 3, stumbles=stumbles) == expected


def use(pruner: Pruner, model: nn.Module, *, wrong: str) -> None:
    for _ in pruner:
        if wrong == "outside":
            next(iter(pruner.microbatches([torch.ones(8)], 3)))
        for batch in pruner.batches():
            given = [part[:5] for part in batch] if wrong == "rows lost" else batch
            for x, y in pruner.microbatches(given, 0 if wrong == "no rows" else 3):
                if wrong == "whole":
                    pruner.loss(F.cross_entropy(model(batch[0]), batch[1])).backward()
                loss = F.cross_entropy(model(x), y)
                if wrong != "no loss":
                    loss = pruner.loss(loss)
                if wrong != "no backward":
                    loss.backward()
                if wrong == "left early":
                    break


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ("no loss", RuntimeError, "Rows 0 to 2 of a batch are left, but its last forward pass has no loss"),
        ("no backward", RuntimeError, "Rows 0 to 2 of a batch are left, but its backward pass has not ended"),
        ("left early", RuntimeError, "Batch 0 of epoch 0 is left after 3 of its 8 rows"),
        ("whole", RuntimeError, r"without a forward pass of the whole batch.* come from microbatches\(\)"),
        ("rows lost", ValueError, "5 rows of a batch go to the model, but 8 samples were read"),
        ("no rows", ValueError, "size is 0, but must be at least 1"),
        ("outside", RuntimeError, r"microbatches\(\) belongs into the loop over batches"),
    ],
)
def test_wrong_use(wrong: str, error: type[Exception], message: str, tmp_path: Path) -> None:
    model = make_net()
    pruner = Pruner(METHODS["ted"], model, make_loader(), epochs=EPOCHS, folder=tmp_path)
    with pytest.raises(error, match=message), pruner:
        use(pruner, model, wrong=wrong)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
