"""IFD: the samples whose answers the instruction helps to predict, but little."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ted_stream.methods.static.measured import finite_scores
from ted_stream.methods.static.static_method import Recorded, Scored, ScoredBatch, StaticMethod
from ted_stream.pruning.batches import IGNORE_INDEX, per_sample_cross_entropy, targets_of

__all__ = ["IFD", "AnswerLosses", "answer_losses"]


class AnswerLosses(NamedTuple):
    """Mean losses of each sample's answer tokens, the same ones with and without what comes before the answers.

    Attributes:
        conditioned: (B,) s(A|Q), eq. 3; 0 where there are no such tokens.
        alone: (B,) s(A), eq. 4; 0 likewise.
        tokens: (B,) int64, how many they are.
    """

    conditioned: Tensor
    alone: Tensor
    tokens: Tensor


@torch.no_grad()
def answer_losses(scored: ScoredBatch) -> AnswerLosses:
    """The losses of the answers given their prompts, and alone: float32 (float64 for float64 logits), detached.

    Each answer of a sample goes through the model by itself, behind the token that begins a sequence if the sample
    begins with that one. Else nothing predicts the first token of an answer, and it counts on neither side. Samples
    are padded on the right.

    Raises:
        ValueError: if these are no tokens with a target, or -100, for each, or not of a causal language model.
    """
    batch, labels = scored.microbatch.batch, targets_of(scored.microbatch.batch)
    ids = batch.get("input_ids") if isinstance(batch, Mapping) else None
    if ids is None or ids.ndim != 2 or labels.shape != ids.shape or not scored.microbatch.shifted:
        raise ValueError(
            "IFD compares answers with and without their prompts, for which it takes a causal language model and "
            f"batches of input_ids (B, S) and labels (B, S), {IGNORE_INDEX} in prompts. Score prepared instructions, "
            "or take a method for other data, such as el2n."
        )
    answers = labels != IGNORE_INDEX
    changes = answers.int().diff(dim=1, prepend=answers.new_zeros(len(ids), 1), append=answers.new_zeros(len(ids), 1))
    rows, begins = (changes == 1).nonzero().T
    is_begun = torch.zeros_like(answers[:, 0])
    if scored.bos_id is not None:
        is_begun = (ids[:, 0] == scored.bos_id) & ~answers[:, 0]
    counted = labels.clone()
    counted[rows, begins] = labels[rows, begins].where(is_begun[rows], IGNORE_INDEX)
    tokens = (counted != IGNORE_INDEX).sum(1)
    conditioned = per_sample_cross_entropy(scored.microbatch.outputs, {"labels": counted}, shifted=True)
    ends = (changes == -1).nonzero()[:, 1]
    spans = torch.stack([rows, begins, ends, is_begun[rows].long()], 1).tolist()
    # Of a sample's first token, which is no answer, the label is -100.
    places = [(row, [*[0] * begun, *range(begin, end)]) for row, begin, end, begun in spans]
    places = [place for place in places if len(place[1]) > 1]
    sums = torch.zeros_like(conditioned)
    for at in range(0, len(places), len(ids)):  # of several answers to a sample no more at once than there are samples
        some = places[at : at + len(ids)]
        owners = rows.new_tensor([row for row, _ in some])
        sums.index_add_(0, owners, _sums_alone(scored, [ids[at] for at in some], [labels[at] for at in some]))
    return AnswerLosses(conditioned, sums / tokens.clamp(min=1), tokens)


def _sums_alone(scored: ScoredBatch, ids: list[Tensor], labels: list[Tensor]) -> Tensor:
    """(n,) the sums of the losses of n sequences, each without anything before it."""
    masks = [torch.ones_like(one) for one in ids]
    inputs = {"input_ids": pad_sequence(ids, batch_first=True), "attention_mask": pad_sequence(masks, batch_first=True)}
    padded = pad_sequence(labels, batch_first=True, padding_value=IGNORE_INDEX)
    means = per_sample_cross_entropy(scored.forward(inputs), {"labels": padded}, shifted=True)
    return means * (padded[:, 1:] != IGNORE_INDEX).sum(1)


@dataclass(frozen=True, kw_only=True)
class IFD(StaticMethod):
    """s(A|Q) / s(A), the answer's loss with the instruction over that without; the largest below 1 are kept.

    (Instruction-following difficulty: Li et al. 2024, eq. 5.) Mean losses over tokens, not perplexities. At 1 or more
    the instruction does not help, and the sample is left out. So is one without an IFD, whose score is NaN: no token
    of its answers can be predicted alone, or all of them are for certain.

    Attributes:
        needs_tokens: that samples must be prompts and answers in tokens.
    """

    needs_tokens: ClassVar[bool] = True

    def of_batch(
        self, scored: ScoredBatch, before: Mapping[str, NDArray[np.float32]], epoch: int
    ) -> Mapping[str, Tensor]:
        """``conditioned`` and ``alone``, (B,) mean losses, and ``tokens``, (B,) how many tokens they are of."""
        del before, epoch
        return {name: column.float() for name, column in answer_losses(scored)._asdict().items()}

    def score(self, recorded: Recorded, *, keep: int | None, seed: int) -> Scored:
        """The ratio."""
        del keep, seed
        has_tokens = recorded.columns["tokens"][:] > 0
        conditioned, alone = (
            finite_scores(np.where(has_tokens, recorded.columns[name], 0), self).astype(np.float64)
            for name in ("conditioned", "alone")
        )
        has_score = has_tokens & (alone > 0)
        ratios = np.divide(conditioned, alone, out=np.full(len(alone), np.nan), where=has_score)
        scores = ratios.astype(np.float32)  # by which samples are left out, too: no kept one has 1.0 in the file
        beyond = has_score & (scores >= 1)
        note = f"{beyond.sum():,} with an IFD of 1 or more, {(~has_score).sum():,} without one"
        return Scored(scores=scores, left_out=beyond | ~has_score, note=note)
