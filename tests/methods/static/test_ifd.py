"""IFD and reference losses against plain cross entropy, sample by sample and without padding."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from surrogates import record, scored_batch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from ted_stream.methods.static import IFD, Recorded, ReferenceLoss, ScoredBatch, choose_subset
from ted_stream.methods.static.ifd import answer_losses
from ted_stream.pipelines.training.text_batches import PaddingCollator

BOS, VOCABULARY, NONE = 1, 40, -100
Sample = tuple[list[int], list[tuple[int, int]]]  # tokens, and from and up to which are answers


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=VOCABULARY, n_positions=40, n_layer=2, n_head=2, n_embd=16)
    network = GPT2LMHeadModel(config).double().eval()
    for parameter in network.parameters():
        parameter.data *= 8  # what comes before a token must matter
    return network


def samples(*, begun: bool) -> list[Sample]:
    """One answer, of one token too; several; at the very start; to the end and not; none. Some prompts have a BOS."""
    rng = np.random.default_rng(3)
    spans = [
        *([(4, 9)], [(2, 3)], [(6, 20)], [(3, 5), (9, 12), (15, 16)], [(2, 4), (5, 9)], []),
        *([(12, 13), (16, 17)], [(1, 4)], [(7, 15)], [(5, 6), (8, 12)]),
    ]
    ends = [max([end for _, end in answers], default=7) + at % 2 for at, answers in enumerate(spans)]
    tokens = [rng.integers(0, VOCABULARY, end).tolist() for end in ends]
    for at, ids in enumerate(tokens):
        ids[0] = BOS if begun and at != 8 else 2
    return [*zip(tokens, spans, strict=True), (rng.integers(2, VOCABULARY, 6).tolist(), [(0, 4)])]


def scored_by(model: PreTrainedModel, some: list[Sample], *, bos_id: int | None) -> ScoredBatch:
    given = []
    for ids, answers in some:
        labels = np.full(len(ids), NONE)
        for start, end in answers:
            labels[start:end] = ids[start:end]
        given.append({"input_ids": np.array(ids), "labels": labels})
    batch = PaddingCollator(pad_id=0)(given)

    def forward(inputs: Any) -> Any:
        assert not inputs["input_ids"][inputs["attention_mask"] == 0].any()  # it is filled with the token 0
        return model(**inputs)

    with torch.no_grad():
        outputs = forward(batch)
    return ScoredBatch(
        microbatch=scored_batch(batch, outputs, size=len(some), shifted=True).microbatch,
        model=model,
        forward=forward,
        bos_id=bos_id,
    )


@torch.no_grad()
def losses_of(model: PreTrainedModel, ids: list[int]) -> Tensor:
    """Of every token but the first, given those before it."""
    return cross_entropy(model(input_ids=torch.tensor([ids])).logits[0, :-1], torch.tensor(ids[1:]), reduction="none")


def by_hand(model: PreTrainedModel, sample: Sample, *, bos_id: int | None) -> tuple[float, float, int]:
    """Eqs. 3 and 4: the means over the answer tokens that can be predicted alone, and how many these are."""
    ids, answers = sample
    begins = bos_id is not None and ids[0] == bos_id and not (answers and answers[0][0] == 0)
    conditioned, alone = [], []
    for start, end in answers:
        answer = ids[start:end]
        conditioned += (
            losses_of(model, ids)[start - 1 : end - 1][0 if begins else 1 :]
            if start
            else (losses_of(model, ids)[: end - 1])
        )
        own = [ids[0], *answer] if begins else answer
        if len(own) > 1:
            alone += losses_of(model, own)
    assert len(conditioned) == len(alone)
    if not alone:
        return 0.0, 0.0, 0
    return float(sum(conditioned)) / len(alone), float(sum(alone)) / len(alone), len(alone)


@pytest.mark.parametrize(("begun", "bos_id"), [(True, BOS), (True, None), (False, BOS)])
@pytest.mark.parametrize("size", [1, 3, 11])
def test_losses_of_answers_are_those_of_every_sample_alone(
    model: PreTrainedModel, size: int, begun: bool, bos_id: int | None
) -> None:
    every = samples(begun=begun)
    parts = [every[at : at + size] for at in range(0, len(every), size)]
    found = [answer_losses(scored_by(model, part, bos_id=bos_id)) for part in parts]
    expected = [by_hand(model, sample, bos_id=bos_id) for sample in every]
    conditioned, alone, tokens = (torch.cat(column) for column in zip(*found, strict=True))
    assert conditioned.dtype == alone.dtype == torch.float64
    assert tokens.tolist() == [count for *_, count in expected]
    np.testing.assert_allclose(conditioned, [one for one, *_ in expected], rtol=1e-12)
    np.testing.assert_allclose(alone, [one for _, one, _ in expected], rtol=1e-12)
    # A one-token answer is known alone only behind a token that begins the sequence.
    assert int(tokens[1]) == (1 if begun and bos_id == BOS else 0)
    assert int(tokens[5]) == 0


def test_the_score_is_the_ratio_of_mean_losses(model: PreTrainedModel) -> None:
    every = samples(begun=True)
    found = IFD().score(record(IFD(), [[scored_by(model, every, bos_id=BOS)]]), keep=None, seed=0)
    ratios = [c / a if n else math.nan for c, a, n in (by_hand(model, sample, bos_id=BOS) for sample in every)]
    np.testing.assert_allclose(found.scores, ratios, rtol=1e-6)
    assert found.left_out is not None
    assert found.left_out.tolist() == [not ratio < 1 for ratio in ratios]
    assert {True, False} == {ratio < 1 for ratio in ratios if not math.isnan(ratio)}


def recorded(**columns: list[float]) -> Recorded:
    return Recorded(columns={name: np.array(column, np.float32) for name, column in columns.items()})


def test_one_and_more_and_none_are_left_out() -> None:
    below = float(np.nextafter(np.float32(1), np.float32(0)))
    close = 1e-9  # closer to 1 than float32 can tell
    found = IFD().score(
        recorded(
            conditioned=[2.0, 2.0, below, 3.0, 0.5, 1.0, 0.0, 1.0 - close],
            alone=[2.0, 4.0, 1.0, 2.0, 1.0, 0.0, 0.0, 1.0],
            tokens=[1, 2, 3, 4, 0, 5, 6, 7],
        ),
        keep=None,
        seed=0,
    )
    assert found.left_out is not None
    np.testing.assert_array_equal(found.scores, np.array([1, 0.5, below, 1.5, *3 * [math.nan], 1], np.float32))
    assert found.left_out.tolist() == [True, False, False, True, True, True, True, True]
    assert found.note == "3 with an IFD of 1 or more, 3 without one"
    kept = choose_subset(found.scores, 1, left_out=found.left_out)
    assert kept.tolist() == [False, False, True, *5 * [False]]
    assert choose_subset(found.scores, 2, left_out=found.left_out).sum() == 2
    with pytest.raises(ValueError, match=r"keep is 3, but must lie in \[1, 2\], .* of 8 that may be kept"):
        choose_subset(found.scores, 3, left_out=found.left_out)


@pytest.mark.parametrize("column", ["conditioned", "alone"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_model_that_diverged_is_no_missing_score(column: str, value: float) -> None:
    columns = {"conditioned": [1.0, 1.0], "alone": [2.0, 2.0], "tokens": [3.0, 3.0]}
    columns[column][1] = value
    with pytest.raises(ValueError, match="gives 1 of 2 samples no finite score, the first, sample 1"):
        IFD().score(recorded(**columns), keep=None, seed=0)


@pytest.mark.parametrize(
    ("batch", "shifted"),
    [
        ([torch.zeros(2, 3), torch.zeros(2).long()], False),
        ({"input_ids": torch.zeros(2, 3).long(), "labels": torch.zeros(2).long()}, True),
        ({"input_ids": torch.zeros(2, 3).long(), "labels": torch.zeros(2, 3).long()}, False),
    ],
)
def test_other_samples_are_refused(batch: Any, shifted: bool) -> None:
    with pytest.raises(ValueError, match="takes a causal language model"):
        IFD().of_batch(scored_batch(batch, torch.zeros(2, 3, 4), size=2, shifted=shifted), {}, 1)


@pytest.mark.parametrize("keep", ["highest", "lowest"])
def test_reference_losses_are_those_of_every_sample_alone(model: PreTrainedModel, keep: str) -> None:
    method, every = ReferenceLoss(keep=keep), samples(begun=True)[:-1]
    parts = [scored_by(model, some, bos_id=None) for some in (every[:4], every[4:])]
    found = method.score(record(method, [parts]), keep=None, seed=0)
    expected = []
    for ids, answers in every:
        own = [float(losses_of(model, ids)[at - 1]) for start, end in answers for at in range(start, end)]
        expected.append(np.mean(own) * (1 if keep == "highest" else -1) if own else math.nan)
    np.testing.assert_allclose(found.scores, expected, rtol=1e-6)
    assert found.left_out is not None
    assert np.flatnonzero(found.left_out).tolist() == [5]
    assert found.note == "1 without targets, and so without a loss"
    kept = choose_subset(found.scores, 3, left_out=found.left_out)
    assert set(np.flatnonzero(kept)) == set(np.argsort(np.nan_to_num(expected, nan=-math.inf))[-3:])


def test_reference_losses_of_classes() -> None:
    logits, labels = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 2, 1, 1, 0])
    scored = scored_batch((torch.zeros(5, 1), labels), logits, size=5)
    found = ReferenceLoss().score(record(ReferenceLoss(), [[scored]]), keep=None, seed=0)
    np.testing.assert_allclose(found.scores, cross_entropy(logits, labels, reduction="none"), rtol=1e-6)
    assert found.left_out is None
