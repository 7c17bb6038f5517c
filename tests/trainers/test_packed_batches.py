"""Samples packed into rows keep their own scores in every trainer; what cannot be told apart is refused."""

import json
from collections.abc import Callable
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from composer import Trainer
from composer.models import ComposerModel
from datasets import Dataset
from hf_runs import make_trainer, tiny_lm
from packed_runs import (
    EPOCHS,
    NUM_TEXTS,
    Texts,
    adapted,
    checkpointed,
    compiled,
    flattened,
    in_two_rows,
    loop_scores,
    make_loader,
    mean_loss,
    model_of_packed,
    padded,
)
from torch import Tensor
from torch.utils.data import DataLoader
from trl import SFTConfig, SFTTrainer  # pyright: ignore[reportPrivateImportUsage]
from trl_runs import settings, tokenizer

from ted_stream import TED, DataPruning, ImportanceSampling, PrunedStreamingDataset, Pruner, PruningMixin
from ted_stream.engine.batch_ids import CarriedIds

# Scores are kept in float32. (What is measured in float64 is compared in ../pruning/test_packing.py.)
ROUNDING = 2e-7


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """A row for each text."""
    scores = loop_scores(str(tmp_path_factory.mktemp("padded")), make_loader(padded))
    assert len(set(scores)) == NUM_TEXTS
    assert min(scores) > 1e-3
    return scores


@pytest.mark.parametrize(
    ("collate", "size", "rows"),
    [(flattened, 4, None), (flattened, 7, None), (in_two_rows, 5, None), (in_two_rows, 5, 1), (padded, 3, 2)],
)
def test_in_a_loop(collate: Any, size: int, rows: int | None, expected: list[float], tmp_path: Path) -> None:
    found = loop_scores(str(tmp_path), make_loader(collate, size), rows=rows)
    assert found == pytest.approx(expected, rel=ROUNDING)


def _own_losses(logits: Tensor, part: dict[str, Tensor]) -> Tensor:
    """A loss for each sample: of packed rows, or of a row each."""
    each = F.cross_entropy(logits[:, :-1].flatten(0, 1), part["labels"][:, 1:].flatten(), reduction="none")
    positions = part.get("position_ids", torch.arange(logits.shape[1]).expand(logits.shape[:2]))
    starts = positions == 0
    owners = (starts.flatten().cumsum(0) - 1).view(starts.shape)[:, 1:].flatten()
    sums = [each.new_zeros(int(starts.sum())).index_add(0, owners, values) for values in (each, (each != 0).double())]
    return sums[0] / sums[1]


def _gradient(folder: Path, collate: Any, rows: int | None, *, vector: bool) -> Tensor:
    """Of all batches of four samples, perhaps in parts of so many rows."""
    model = model_of_packed()
    with Pruner(TED(0.6), model, make_loader(collate), epochs=EPOCHS, folder=folder) as pruner:
        for _ in pruner:
            for batch in pruner.batches():
                for part in pruner.microbatches(batch, rows) if rows else [batch]:
                    logits = model(**{name: tensor for name, tensor in part.items() if name != "labels"}).logits
                    loss = _own_losses(logits, part) if vector else mean_loss(logits, part["labels"])
                    pruner.loss(loss).backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("vector", [True, False])
def test_parts_weigh_as_many_samples_as_they_hold(vector: bool, tmp_path: Path) -> None:
    """Three samples in one row and one in the other: as those in a row each, three and one to a part."""
    expected = _gradient(tmp_path / "padded", padded, 3, vector=vector)
    found = _gradient(tmp_path / "packed", partial(in_two_rows, first=3), 1, vector=vector)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    if vector:
        torch.testing.assert_close(
            found, _gradient(tmp_path / "whole", padded, None, vector=True), rtol=1e-9, atol=1e-12
        )


@pytest.mark.parametrize(
    "wrap",
    [adapted, checkpointed, pytest.param(compiled, marks=pytest.mark.long)],
    ids=["adapted", "checkpointed", "compiled"],
)
def test_of_models_that_train_an_adapter_alone(wrap: Any, expected: list[float], tmp_path: Path) -> None:
    # All in one batch, so that there are few shapes to compile for.
    found = loop_scores(str(tmp_path), make_loader(flattened, NUM_TEXTS), wrap=wrap)
    assert found == pytest.approx(expected, rel=ROUNDING)


def test_weighed_samples(tmp_path: Path) -> None:
    found = [
        loop_scores(str(tmp_path / name), make_loader(collate), method=ImportanceSampling(0.5))
        for name, collate in {"padded": padded, "flattened": flattened}.items()
    ]
    assert found[1] == pytest.approx(found[0], rel=ROUNDING)


def _mean(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | None = None) -> Tensor:
    total = mean_loss(outputs.logits, labels) * (labels[:, 1:] != -100).sum()
    assert num_items_in_batch is not None
    return total / num_items_in_batch


@pytest.mark.parametrize("accumulation", [1, 3])
def test_in_hugging_faces_trainer(accumulation: int, expected: list[float], tmp_path: Path) -> None:
    model = model_of_packed()
    trainer = make_trainer(
        TED(0.6),
        str(tmp_path),
        model=model,
        dataset=Texts(),
        optimizers=(torch.optim.SGD(model.parameters(), 0.0), None),
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=accumulation,
    )
    trainer.data_collator, trainer.compute_loss_func = flattened, _mean
    trainer.train()
    assert trainer.pruning_engine.scores().tolist() == pytest.approx(expected, rel=ROUNDING)


class ComposerLM(ComposerModel):
    shift_labels = True

    def __init__(self) -> None:
        super().__init__()
        self.lm = model_of_packed()

    def forward(self, batch: dict[str, Tensor]) -> Any:
        return self.lm(**{name: tensor for name, tensor in batch.items() if name != "labels"}).logits

    def loss(self, outputs: Tensor, batch: dict[str, Tensor]) -> Tensor:
        return mean_loss(outputs, batch["labels"])


@pytest.mark.parametrize(("collate", "size", "rows"), [(flattened, 4, None), (in_two_rows, 5, 1)])
def test_in_composer(collate: Any, size: int, rows: int | None, expected: list[float], tmp_path: Path) -> None:
    model = ComposerLM()
    pruning = DataPruning(TED(0.6), folder=str(tmp_path))
    Trainer(
        model=model,
        train_dataloader=make_loader(collate, size),
        algorithms=[pruning],
        max_duration=f"{EPOCHS}ep",
        optimizers=torch.optim.SGD(model.parameters(), 0.0),
        device_train_microbatch_size=rows,
        device="cpu",
        progress_bar=False,
        auto_log_hparams=False,
    ).fit()
    # Of a float64 model Composer keeps the loss in float32.
    assert pruning.engine.scores().tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.long
def test_on_two_ranks(expected: list[float], launch: Callable[..., None], tmp_path: Path) -> None:
    launch(Path(__file__).with_name("packed_runs.py"), tmp_path, ranks=2, launcher="torch")
    for rank in range(2):
        for scores in json.loads((tmp_path / f"rank{rank}.json").read_text()).values():
            assert scores == pytest.approx(expected, rel=ROUNDING)


class PackedBefore(Texts):
    """Rows of two texts each."""

    def __len__(self) -> int:
        return NUM_TEXTS // 2

    def __getitem__(self, at: int) -> dict[str, list[int]]:
        both = flattened([super(PackedBefore, self).__getitem__(2 * at + more) for more in (0, 1)])
        return {name: tensor[0].tolist() for name, tensor in both.items()}


def joined(samples: list[dict[str, list[int]]]) -> dict[str, Tensor]:
    """One row, with the positions that the samples bring."""
    return {name: torch.tensor([[*chain(*(sample[name] for sample in samples))]]) for name in samples[0]}


def test_what_was_packed_before_is_a_sample_alone_and_refused_in_one_row(tmp_path: Path) -> None:
    alone = loop_scores(str(tmp_path / "alone"), make_loader(joined, 1, PackedBefore()))
    assert len(set(alone)) == NUM_TEXTS // 2
    with pytest.raises(ValueError, match="1 rows with 8 sequences packed into them, but 4 samples were read"):
        loop_scores(str(tmp_path / "refused"), make_loader(joined, 4, PackedBefore()))
    assert not (tmp_path / "refused").exists()


def longest_first(samples: list[dict[str, list[int]]]) -> dict[str, Tensor]:
    """As packers of bins do."""
    return flattened(sorted(samples, key=lambda sample: -len(sample["labels"])))


def without_positions(samples: list[dict[str, list[int]]]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in flattened(samples).items() if name != "position_ids"}


@pytest.mark.parametrize(
    ("collate", "message"), [(longest_first, "another order"), (without_positions, "makes 1 rows of 4 samples")]
)
def test_samples_that_are_not_known_are_refused(collate: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        loop_scores(str(tmp_path), make_loader(collate))


def with_ids(samples: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Passes an id through for every sample that it packs."""
    texts = [{"input_ids": sample["x"].tolist(), "labels": sample["x"].tolist()} for sample in samples]
    return {**flattened(texts), "sample_id": torch.tensor([int(sample["sample_id"]) for sample in samples])}


class StreamedTexts(PrunedStreamingDataset):
    """The first integers of samples as texts."""

    def __getitem__(self, at: Any) -> Any:
        text = (super().__getitem__(at)["x"] * 3).astype(int) % 11
        return {"x": text[: 3 + int(abs(text.sum())) % 3]}


def test_ids_that_streamed_samples_carry(make_mds: Callable[..., str], tmp_path: Path) -> None:
    def scores(collate: Any, name: str) -> list[float]:
        data = StreamedTexts(local=make_mds(NUM_TEXTS), shuffle=True, batch_size=4)
        return loop_scores(str(tmp_path / name), DataLoader(data, batch_size=4, collate_fn=collate))

    def one_by_one(samples: list[dict[str, Any]]) -> dict[str, Tensor]:
        texts = [{"input_ids": sample["x"].tolist(), "labels": sample["x"].tolist()} for sample in samples]
        return {**padded(texts), "sample_id": torch.tensor([int(sample["sample_id"]) for sample in samples])}

    assert scores(with_ids, "packed") == pytest.approx(scores(one_by_one, "padded"), rel=ROUNDING)
    with pytest.raises(ValueError, match="turned the sample ids"):
        scores(lambda samples: with_ids(samples) | {"sample_id": torch.zeros(1, dtype=torch.long)}, "fewer")
    with pytest.raises(ValueError, match="makes 1 rows of 4 samples"):
        scores(lambda samples: {name: row for name, row in with_ids(samples).items() if name != "position_ids"}, "no")


def test_as_many_ids_as_rows_or_samples_in_them() -> None:
    rows = {"input_ids": torch.ones(3, 2), "sample_id": torch.arange(2)}
    with pytest.raises(ValueError, match="A batch has 3 rows, but 2 sample ids"):
        CarriedIds().take(rows)


# TRL


class PrunedSFTTrainer(PruningMixin, SFTTrainer):
    pass


def _sft(folder: Path, **arguments: Any) -> PrunedSFTTrainer:
    return PrunedSFTTrainer(
        model=tiny_lm(),
        args=SFTConfig(**settings(str(folder), num_train_epochs=EPOCHS, learning_rate=0.0, **arguments)),
        train_dataset=Dataset.from_list([{"input_ids": text, "labels": text} for text in Texts().texts]),
        processing_class=tokenizer(),
        pruning=TED(0.6),
    )


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:Pruning measures samples at their logits")
def test_padding_free_batches_of_trl(tmp_path: Path) -> None:
    found = []
    for padding_free in (False, True):
        trainer = _sft(tmp_path / str(padding_free), padding_free=padding_free, max_length=None)
        model: Any = trainer.model
        model.config.use_cache = False
        trainer.train()
        found.append(trainer.pruning_engine.scores().tolist())
    assert found[1] == pytest.approx(found[0], rel=1e-5)  # TRL widens logits to float32


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:Pruning measures samples at their logits")
def test_datasets_that_trl_packs(tmp_path: Path) -> None:
    """A packed row is a sample where it has a row of its own."""
    with pytest.raises(ValueError, match="samples were read for it, so it is not known whose they are"):
        _sft(tmp_path / "several", packing=True, max_length=16).train()
    trainer = _sft(tmp_path / "one", packing=True, max_length=16, per_device_train_batch_size=1)
    trainer.train()
    data: Any = trainer.train_dataset
    assert len(trainer.pruning_engine.scores()) == len(data) < NUM_TEXTS
