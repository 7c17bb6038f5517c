"""Samples that share rows: each keeps its own measurement, and its own weight on its own tokens."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from packed import PackedLM, pack, packed_lm, samples
from torch import Tensor, nn
from trainer import VOCABULARY, mean_loss, own_losses

from ted_stream.pruning.measures import SITES, ErrorNorm, LastLayerGradient, Loss, MaskGradient, Measure
from ted_stream.pruning.packing import segments_of
from ted_stream.pruning.probe import StepProbe

each_site = pytest.mark.parametrize("site", SITES)
N = 6
# Sums over tokens are of another length and so in another order than those over padded rows; and attention, and each
# product of matrices, of other shapes.
ROUNDING: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-14}
PACKINGS: list[tuple[list[list[int]], int | None]] = [
    ([[0, 1, 2], [3, 4, 5]], None),
    ([[0, 1, 2, 3, 4, 5]], None),
    ([[0], [1, 2, 3, 4], [5]], 40),
]


def _measure(
    batch: dict[str, Tensor], count: int, measure: Measure, weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """What is measured, and all parameters' gradients."""
    model = packed_lm()
    probe = StepProbe(measure, weighted=weights is not None)
    probe.attach(model)
    given = probe.before_forward(batch, weights, segments_of(batch, count))
    outputs = model(given)
    loss = mean_loss(outputs, given)
    probe.before_backward(given, outputs, loss)
    (loss * 0.37).backward()
    values = probe.after_backward()
    probe.check()
    assert values is not None
    return values, torch.cat(
        [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
    )


def _rows(numbers: Sequence[Sequence[int]], count: int = N) -> list[list[dict[str, Tensor]]]:
    given = samples(count)
    return [[given[at] for at in row] for row in numbers]


def _alone(measure: Measure, count: int = N) -> Tensor:
    """Of every sample in a batch of its own."""
    return torch.cat([_measure(pack([[sample]]), 1, measure)[0] for sample in samples(count)])


MEASURES = [
    *(MaskGradient(site) for site in SITES),
    MaskGradient("features", norm=1),
    MaskGradient("output", norm=2),
    Loss(),
    ErrorNorm(),
    LastLayerGradient(),
]


@pytest.mark.parametrize("measure", MEASURES, ids=repr)
def test_the_same_whatever_surrounds_the_sample(measure):
    expected = _alone(measure)
    assert expected.min() > 1e-4  # nothing is compared with nothing
    for rows, room in [*PACKINGS, ([[at] for at in range(N)], None), ([[at] for at in range(N)], 40)]:
        found, _ = _measure(pack(_rows(rows), room=room), N, measure)
        torch.testing.assert_close(found, expected, **ROUNDING)
    turned, _ = _measure(pack(_rows([[5, 4], [3, 2, 1, 0]])), N, measure)
    torch.testing.assert_close(turned.flip(0), expected, **ROUNDING)
    among_others, _ = _measure(pack(_rows([[6, 0, 7], [8, 1]], 9)), 5, measure)
    torch.testing.assert_close(among_others[[1, 4]], expected[:2], **ROUNDING)


def _losses(model: PackedLM, batch: dict[str, Tensor], site: str, delta: Tensor) -> Tensor:
    """(n,) each sample's own loss, with a factor (R, S) multiplied in at every token, by hooks of the test's own."""

    def scaled(module: nn.Module, args: Any, output: Tensor | None = None) -> Any:
        return (args[0] * delta[..., None],) if output is None else output * delta[..., None]

    place: Any = model.lm.transformer.wte if site == "input" else model.lm.lm_head
    hook = place.register_forward_pre_hook(scaled) if site == "features" else place.register_forward_hook(scaled)
    with torch.no_grad():
        logits = model(batch).logits
    hook.remove()
    losses, lengths = [], [len(sample["labels"]) for sample in samples(N)]
    for row, labels in zip(logits, batch["labels"], strict=True):
        start = 0
        while len(losses) < N and start + lengths[len(losses)] <= len(labels):
            part = slice(start, start + lengths[len(losses)])
            losses.append(own_losses(row[None, part], {"labels": labels[None, part]}))
            start = part.stop
    return torch.cat(losses)


@each_site
def test_equals_finite_differences_of_the_samples_own_loss(site):
    batch = pack(_rows([[0, 1, 2], [3, 4, 5]]))
    found, _ = _measure(batch, N, MaskGradient(site))
    segments = segments_of(batch, N)
    assert segments is not None
    model, slopes = packed_lm(), []
    for at in range(N):
        mine = (segments.owners == at).double()
        up, down = (_losses(model, batch, site, 1 + sign * 1e-5 * mine)[at] for sign in (1, -1))
        slopes.append((up - down).abs() / 2e-5)
    torch.testing.assert_close(found, torch.stack(slopes), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("rows", "room"), PACKINGS)
def test_a_weight_is_on_the_samples_own_tokens(rows, room):
    weights = torch.linspace(0.5, 3, N, dtype=torch.float64)
    expected, gradient = _measure(pack(_rows([[at] for at in range(N)])), N, MaskGradient(), weights)
    found, of_packed = _measure(pack(_rows(rows), room=room), N, MaskGradient(), weights)
    torch.testing.assert_close(of_packed, gradient, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(found, expected, **ROUNDING)
    torch.testing.assert_close(found, _alone(MaskGradient()), **ROUNDING)
    _, unweighted = _measure(pack(_rows(rows), room=room), N, MaskGradient())
    assert not torch.allclose(of_packed, unweighted, rtol=0.1)


def test_a_sample_without_targets():
    rows = _rows([[0, 1, 2], [3, 4, 5]])
    rows[0][1]["labels"][:] = -100
    found, _ = _measure(pack(rows), N, MaskGradient())
    expected = _alone(MaskGradient())
    assert found[1] == 0
    torch.testing.assert_close(found[[0, 2, 3, 4, 5]], expected[[0, 2, 3, 4, 5]], **ROUNDING)


def test_a_vector_of_the_samples_losses():
    """Of a loss function that knows of packing: the mean of such a vector weighs all samples alike."""
    batch = pack(_rows([[0, 1, 2], [3, 4, 5]]))
    segments, model, probe = segments_of(batch, N), packed_lm(), StepProbe(MaskGradient())
    assert segments is not None
    probe.attach(model)
    given = probe.before_forward(batch, None, segments)
    outputs = model(given)
    each = F.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), given["labels"][:, 1:].flatten(), reduction="none")
    each = F.pad(each.view(len(given["labels"]), -1), (1, 0))
    losses = segments.sums(each) / segments.sums(given["labels"] != -100)
    probe.before_backward(given, outputs, losses)
    (losses * torch.linspace(0.5, 3, N)).sum().backward()
    torch.testing.assert_close(probe.after_backward(), _alone(MaskGradient()), **ROUNDING)


# What tells of segments


def _told_by(name: str, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    positions, attended = batch["position_ids"], batch["attention_mask"].bool()
    starts = (positions == 0) & attended
    numbers = (starts.cumsum(1) - 1).where(attended, -1)
    rest = {key: tensor for key, tensor in batch.items() if key != "position_ids"}
    if name == "sequence_id":  # llm-foundry's collator
        return {**rest, "sequence_id": numbers}
    if name == "seq_idx":  # transformers' collator
        return {**rest, "seq_idx": numbers.int()}
    ends = torch.cat([starts.flatten().nonzero().flatten(), torch.tensor([starts.numel()])])
    return {**rest, name: ends.int()}


@pytest.mark.parametrize("name", ["sequence_id", "seq_idx", "cu_seq_lens_q", "cu_seqlens"])
def test_told_by_other_entries(name):
    batch = pack(_rows([[0, 1, 2, 3, 4, 5]]))
    expected, found = segments_of(batch, N), segments_of(_told_by(name, batch), N)
    assert expected is not None
    assert found is not None
    assert torch.equal(found.owners, expected.owners)
    assert torch.equal(found.tokens, expected.tokens)
    assert torch.equal(found.lengths, expected.lengths)
    assert found.before == (0, N)


@pytest.mark.parametrize("name", ["cu_seq_lens_q", "cu_seqlens"])
def test_ends_are_those_of_one_row(name):
    """Parts of several rows would keep all of them."""
    batch = pack(_rows([[0, 1, 2], [3, 4, 5]]))
    for given in (_told_by(name, batch), batch | {name: _told_by(name, batch)[name]}):
        with pytest.raises(ValueError, match=f"has '{name}' and 2 rows"):
            segments_of(given, N)
        assert segments_of(given, 2) is None


@pytest.mark.parametrize("wrong", [[1, 3, 9], [0, 3, 8], [0, 3, 10], [0, 5, 3, 9], [0, 3, 3, 9], []])
def test_ends_that_are_none_of_the_row_are_refused(wrong):
    batch = {"input_ids": torch.ones(1, 9, dtype=torch.int64), "cu_seqlens": torch.tensor(wrong, dtype=torch.int32)}
    with pytest.raises(ValueError, match=r"ascend from 0 to 9"):
        segments_of(batch, 2)


def test_padding_is_nobodys():
    batch = pack(_rows([[0, 1], [2, 3, 4], [5]]), room=40)
    for given in (batch, _told_by("sequence_id", batch)):
        segments = segments_of(given, N)
        assert segments is not None
        lengths = [len(sample["labels"]) for sample in samples(N)]
        assert [int((segments.owners == at).sum()) for at in range(N)] == lengths
        assert segments.before == (0, 2, 5, 6)
        last = segments.of_rows(slice(1, 3))
        assert [int((last.owners == at).sum()) for at in range(4)] == lengths[2:]
        assert last.before == (0, 3, 4)


def test_rows_that_are_samples_are_left_alone():
    one_each = pack(_rows([[at] for at in range(N)]))
    left_padded = {**one_each, "position_ids": (one_each["attention_mask"].flip(1).cumsum(1) - 1).clamp(min=1)}
    packed_before = pack(_rows([[0, 1], [2, 3], [4, 5]]))
    for batch, count in [(one_each, N), (left_padded, N), (packed_before, 3), ((torch.zeros(4, 2),), 4)]:
        assert segments_of(batch, count) is None
    broadcast = {"input_ids": torch.zeros(4, 3), "position_ids": torch.arange(3)[None]}
    assert segments_of(broadcast, 4) is None
    # As many sequences as samples in all, but rows that do not begin with one.
    begun_before = {"input_ids": torch.ones(2, 4), "position_ids": torch.tensor([[3, 4, 5, 6], [0, 1, 2, 0]])}
    assert segments_of(begun_before, 2) is None


class NeverLooked(Tensor):
    """As one on a device would have to be waited for."""

    def cpu(self, *arguments: Any, **others: Any) -> Any:
        raise AssertionError("looked at")


def test_rows_that_tell_of_no_segments_are_not_looked_at():
    attended = torch.ones(2, 4).as_subclass(NeverLooked)
    with pytest.raises(AssertionError, match="looked at"):
        attended.cpu()
    assert segments_of({"input_ids": torch.ones(2, 4), "attention_mask": attended}, 2) is None


@each_site
def test_rows_of_padding_hold_nobody(site):
    """As many samples as rows, but not one in each."""
    batch = pack([*_rows([[0, 1]]), []])
    segments = segments_of(batch, 2)
    assert segments is not None
    assert segments.before == (0, 2, 2)
    assert segments.of_rows(slice(1, 2)).samples == 0
    found, _ = _measure(batch, 2, MaskGradient(site))
    torch.testing.assert_close(found, _alone(MaskGradient(site), 2), **ROUNDING)


@pytest.mark.parametrize("row", [0, 1])
def test_a_row_that_begins_within_a_sample_is_refused(row):
    """Of a packer that cuts samples at the ends of rows."""
    rows = [[0, 1, 2, 3], [0, 1, 2, 0]]
    rows[row] = [2, 3, 0, 1]
    for samples_read in (3, 4):
        with pytest.raises(ValueError, match=f"Row {row} of the batch does not begin with the first token of a sample"):
            segments_of({"input_ids": torch.ones(2, 4), "position_ids": torch.tensor(rows)}, samples_read)


def test_a_long_sample_makes_no_room_for_the_others():
    lengths = torch.tensor([32_000, *[32] * 1000])
    positions = torch.cat([torch.arange(int(length)) for length in lengths])[None]
    segments = segments_of({"input_ids": positions, "position_ids": positions}, 1001)
    assert segments is not None
    kept = [tensor for tensor in vars(segments).values() if isinstance(tensor, Tensor)]
    assert sum(tensor.numel() for tensor in kept) < 3 * positions.numel()
    values = torch.randn(positions.shape, generator=torch.Generator().manual_seed(0))
    expected = torch.stack([part.sum() for part in values[0].double().split(lengths.tolist())])
    torch.testing.assert_close(segments.sums(values.double()), expected, rtol=0, atol=1e-11)
    torch.testing.assert_close(segments.sums(values), expected.float(), rtol=1e-7, atol=0)
    assert torch.equal(segments.sums(positions >= 0), lengths)


@pytest.mark.parametrize("count", [2, N - 1, N + 1])
def test_segments_that_are_not_the_samples_are_refused(count):
    with pytest.raises(ValueError, match=f"1 rows with {N} sequences packed into them, but {count} samples were read"):
        segments_of(pack(_rows([[0, 1, 2, 3, 4, 5]])), count)


def _left_padded() -> dict[str, Tensor]:
    """Rows of three samples each, behind two tokens of padding, and before three."""
    batch = pack(_rows([[0, 1, 2], [3, 4, 5]]))
    padding = {"labels": -100}
    return {name: F.pad(tensor, (2, 3), value=padding.get(name, 0)) for name, tensor in batch.items()}


@pytest.mark.parametrize("border", ["before", "behind"])
def test_a_target_that_is_predicted_across_the_border_of_padding_is_refused(border):
    batch = _left_padded()
    found, _ = _measure(batch, N, Loss())
    torch.testing.assert_close(found, _alone(Loss()), **ROUNDING)
    at = 2 if border == "before" else 2 + sum(len(sample["labels"]) for sample in samples(3))
    assert batch["attention_mask"][0, at].item() == (border == "before")
    batch["labels"][0, at] = 3
    with pytest.raises(ValueError, match="or from padding"):
        _measure(batch, N, Loss())


def test_a_target_within_padding_is_part_of_the_loss_and_of_no_sample():
    batch = _left_padded()
    batch["labels"][:, 1] = 3  # which the padding before it predicts
    with pytest.warns(UserWarning, match="Together, samples of the first microbatch have a loss of"):
        found, _ = _measure(batch, N, MaskGradient())
    torch.testing.assert_close(found, _alone(MaskGradient()), **ROUNDING)


def test_a_batch_of_other_rows_is_told_of_rows():
    batch = pack(_rows([[0, 1, 2], [3, 4, 5]]))
    model, probe = packed_lm(), StepProbe(MaskGradient())
    probe.attach(model)
    outputs = model(probe.before_forward(batch, None, segments_of(batch, N)))
    fewer = {name: tensor[:1] for name, tensor in batch.items()}
    with pytest.raises(
        ValueError, match=r"had 2 rows before the forward pass, but .* has 1, .* Keep all rows, in order"
    ):
        probe.before_backward(fewer, outputs, mean_loss(outputs, batch))


@each_site
def test_a_first_token_that_is_predicted_from_another_sample_is_refused(site):
    batch = pack(_rows([[0, 1, 2], [3, 4, 5]]))
    batch["labels"][0, 0] = batch["labels"][1, 0] = 3  # which nothing predicts
    _measure(batch, N, MaskGradient(site))
    batch["labels"][0, len(samples(1)[0]["labels"])] = 3
    with pytest.raises(ValueError, match="predicts from the sample before it"):
        _measure(batch, N, MaskGradient(site))


def test_a_layer_that_takes_no_rows_of_tokens_is_refused():
    class Flattened(PackedLM):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(VOCABULARY, VOCABULARY)

        def forward(self, batch: dict[str, Tensor]) -> Any:
            hidden = super().forward(batch).logits  # of which another layer makes logits
            return self.head(hidden.flatten(0, 1)).view(hidden.shape)

    model = Flattened()
    probe, batch = StepProbe(MaskGradient(), output_layer="head"), pack(_rows([[0, 1, 2], [3, 4, 5]]))
    probe.attach(model)
    probe.before_forward(batch, None, segments_of(batch, N))
    with pytest.raises(ValueError, match="2 packed rows of"):
        model(batch)


def test_targets_that_are_not_the_tokens_are_refused():
    batch = pack(_rows([[0, 1, 2], [3, 4, 5]]))
    batch["labels"] = torch.tensor([1, 2])
    model, probe = packed_lm(), StepProbe(MaskGradient())
    probe.attach(model)
    outputs = model(probe.before_forward(batch, None, segments_of(batch, N)))
    with pytest.raises(ValueError, match="packed into rows of"):
        probe.before_backward(batch, outputs, outputs.logits.square().mean())
