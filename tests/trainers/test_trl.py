"""TRL's SFTTrainer on a tiny model: pruned, resumed, with an adapter, and with the head that TRL fuses."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from hf_runs import tiny_lm
from peft import LoraConfig
from transformers import LlamaForCausalLM
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer  # pyright: ignore[reportPrivateImportUsage]
from trl_runs import settings, tokenizer

from ted_stream import TED, ImportanceSampling, InfoBatch, PruningMixin, RandomPruning
from ted_stream.methods import Method
from ted_stream.trainers.huggingface.plain_head import PlainHead

NUM_SAMPLES = 30
METHODS: dict[str, Method] = {
    "ted": TED(0.6),
    "random": RandomPruning(0.5),
    "infobatch": InfoBatch(0.5),
    "importance": ImportanceSampling(0.5),
}
pytestmark = pytest.mark.filterwarnings("ignore:Pruning measures samples at their logits")


class PrunedSFTTrainer(PruningMixin, SFTTrainer):
    pass


def instructions() -> Dataset:
    rng = random.Random(0)

    def text(least: int, most: int) -> str:
        return " ".join(rng.choice("abcdefgh") for _ in range(rng.randint(least, most)))

    prompts = [text(2, 5) for _ in range(NUM_SAMPLES)]
    return Dataset.from_dict({"prompt": prompts, "completion": [" " + text(1, 6) for _ in prompts]})


def make_trainer(
    method: Method, folder: str, model: LlamaForCausalLM | None = None, lora: Any = None, **arguments: Any
) -> PrunedSFTTrainer:
    return PrunedSFTTrainer(
        model=model or tiny_lm(),
        args=SFTConfig(**settings(folder, **arguments)),
        train_dataset=instructions(),
        processing_class=tokenizer(),
        peft_config=lora,
        pruning=method,
    )


def outcome(trainer: PrunedSFTTrainer) -> dict[str, Any]:
    assert trainer.model is not None
    return {
        "digests": [record.digest for record in trainer.pruning_records],
        "kept": [record.kept for record in trainer.pruning_records],
        "scores": np.nan_to_num(trainer.pruning_engine.scores(), nan=-1).tolist(),
        "weights": torch.cat([p.detach().flatten() for p in trainer.model.parameters()]).tolist(),
    }


@pytest.mark.long
@pytest.mark.parametrize("name", METHODS)
def test_goes_on_to_the_bit(name: str, tmp_path: Path) -> None:
    """With steps of several batches, the last of an epoch in part."""
    trainer = make_trainer(METHODS[name], str(tmp_path), save_strategy="steps", save_steps=1)
    trainer.train()
    expected = outcome(trainer)
    assert expected["kept"][0] == NUM_SAMPLES > min(expected["kept"])
    for step in (2, 4):  # within the first epoch of 3 steps, within the second
        again = make_trainer(METHODS[name], str(tmp_path))
        again.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        assert outcome(again) == expected


@pytest.mark.long
def test_an_adapter(tmp_path: Path) -> None:
    """Whose head is frozen; the mask is at what enters it all the same."""
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    trainer = make_trainer(METHODS["ted"], str(tmp_path), lora=lora)
    trainer.train()
    assert str(trainer.pruning_engine.output_layer).endswith("lm_head")
    assert np.isfinite(trainer.pruning_engine.scores()).all()
    assert min(record.kept for record in trainer.pruning_records) < NUM_SAMPLES


def test_logits_tell_what_the_fused_head_tells(tmp_path: Path) -> None:
    trainer = make_trainer(METHODS["ted"], str(tmp_path))
    model: Any = trainer.model
    batch = next(iter(trainer.get_train_dataloader()))
    fused = model(**batch, fused_lm_head=True)
    head = PlainHead()
    head.attach(model)
    plain = model(**batch, fused_lm_head=True)
    head.detach()
    for name in ("log_probs", "entropy", "is_top1", "label_mask"):
        torch.testing.assert_close(plain[name], fused[name].to(plain[name].dtype), rtol=1e-5, atol=1e-5)
    gradients = []
    for output in (fused, plain):
        model.zero_grad()
        output.log_probs.sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=1e-5)
    assert "log_probs" not in model(**batch)


@pytest.mark.long
def test_what_is_not_measured_keeps_the_fused_head(tmp_path: Path) -> None:
    trainer = make_trainer(METHODS["random"], str(tmp_path), num_train_epochs=2)
    called = []
    trainer.model.lm_head.register_forward_hook(lambda *passed: called.append(1))  # pyright: ignore
    trainer.train()
    assert not called


@pytest.mark.long
@pytest.mark.parametrize("method", ["ted", "random"])
def test_preferences_are_refused(method: str, tmp_path: Path) -> None:
    """A pair is two rows of the forward pass."""

    class PrunedDPOTrainer(PruningMixin, DPOTrainer):
        pass

    texts = instructions()["completion"]
    data = Dataset.from_dict({"prompt": instructions()["prompt"], "chosen": texts, "rejected": texts[::-1]})
    arguments = settings(str(tmp_path))
    trainer = PrunedDPOTrainer(
        model=tiny_lm(),
        ref_model=tiny_lm(),
        args=DPOConfig(**arguments),
        train_dataset=data,
        processing_class=tokenizer(),
        pruning=METHODS[method],
    )
    with pytest.raises(ValueError, match=r"pairs of rows|makes 8 rows of 4 samples"):
        trainer.train()
