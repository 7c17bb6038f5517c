"""A language model of which an adapter alone is trained: what changes, and going on to the bit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_runs import make_trainer, outcome_of
from loop_runs import outcome
from packed_runs import NUM_TEXTS, Texts, adapted, flattened, make_loader, mean_loss, model_of_packed, padded
from torch import Tensor, nn

from ted_stream import TED, Pruner

METHOD, EPOCHS = TED(0.6), 3
each_collator = pytest.mark.parametrize("collate", [padded, flattened], ids=["padded", "flattened"])


def lora() -> Any:
    """The same adapter at every call."""
    torch.manual_seed(2)
    return adapted(model_of_packed())


def changed(model: nn.Module) -> set[str]:
    before = dict(lora().named_parameters())
    return {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}


def assert_trained(found: dict[str, Any], model: nn.Module) -> None:
    assert all(0 < score < float("inf") for score in found["scores"])
    assert min(found["kept"]) < NUM_TEXTS == found["kept"][0]
    assert changed(model) == {name for name, _ in model.named_parameters() if "lora_" in name}


def train(
    folder: Path,
    collate: Callable[..., dict[str, Tensor]],
    resume: dict[str, Any] | None = None,
    stop_at: int | None = None,
) -> tuple[dict[str, Any], nn.Module]:
    """By a loop; what equal runs have in common, or the state after so many batches."""
    model = lora()
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], 0.01)
    pruner = Pruner(METHOD, model, make_loader(collate), epochs=EPOCHS, folder=folder)
    parts: dict[str, Any] = {"model": model, "optimizer": optimizer, "pruner": pruner}
    for name, part in parts.items():
        if resume is not None:
            part.load_state_dict(resume[name])
    batches = 0
    with pruner:
        for _ in pruner:
            for batch in pruner.batches():
                inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
                pruner.loss(mean_loss(model(**inputs).logits, batch["labels"])).backward()
                optimizer.step()
                optimizer.zero_grad()
                batches += 1
                if batches == stop_at:
                    return {name: part.state_dict() for name, part in parts.items()}, model
    return outcome(pruner, model), model


@each_collator
def test_a_loop_goes_on_to_the_bit(collate: Any, tmp_path: Path) -> None:
    expected, model = train(tmp_path / "whole", collate)
    assert_trained(expected, model)
    for stop_at in (4, 8):  # within the first epoch of 6 batches, within the second
        state, _ = train(tmp_path / f"at{stop_at}", collate, stop_at=stop_at)
        found, _ = train(tmp_path / f"at{stop_at}", collate, resume=state)
        assert found == expected


@pytest.mark.long
@each_collator
def test_hugging_faces_trainer_goes_on_to_the_bit(collate: Any, tmp_path: Path) -> None:
    def made(folder: Path, **arguments: Any) -> Any:
        options = {"num_train_epochs": EPOCHS, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
        model = lora()
        trainer = make_trainer(
            METHOD,
            str(folder),
            model=model,
            dataset=Texts(),
            optimizers=(torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 0.01), None),
            **options,
            **arguments,
        )
        trainer.data_collator = collate
        return trainer

    trainer = made(tmp_path, save_strategy="steps", save_steps=2)
    trainer.train()
    expected = outcome_of(trainer)
    assert_trained(expected, trainer.model)
    for step in (4, 8):
        again = made(tmp_path)
        again.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        assert outcome_of(again) == expected
