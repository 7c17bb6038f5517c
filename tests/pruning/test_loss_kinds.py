"""Means, sums, vectors and what is none of them: what scores make of the loss."""

import functools
import math
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from trainer import (
    CLASSES,
    FAMILIES,
    CausalLM,
    Classifier,
    images,
    logits_of,
    mean_loss,
    mlp,
    own_losses,
    probe_step,
    rows,
    tokens,
)

from ted_stream.pruning.loss_kinds import Counted, read_value
from ted_stream.pruning.measures import ErrorNorm, LastLayerGradient, Loss, Margin, MaskGradient, Measure
from ted_stream.pruning.probe import StepProbe

B = 8
LossFunction = Callable[[Any, Any], Any]
each_family = pytest.mark.parametrize("family", [FAMILIES[0], FAMILIES[-1]], ids=lambda family: family.name)
each_measure = pytest.mark.parametrize("measure", [MaskGradient(), MaskGradient("output", 2), Loss()], ids=repr)


def _measured(model: Any, batch: Any, measure: Measure, loss: LossFunction, given: bool, **options: Any) -> Tensor:
    """Of the second batch, after the first was looked at; nothing changes between the two."""
    probe = StepProbe(measure, loss=loss if given else None)
    probe.attach(model)
    first = probe_step(model, batch, probe, loss=loss, **options)
    probe.check()
    second = probe_step(model, batch, probe, loss=loss, **options)
    assert torch.equal(first, second)
    return second


def _sum(outputs: Any, batch: Any) -> Tensor:
    logits = logits_of(outputs)
    if isinstance(batch, dict):
        logits, targets = logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten()
        return F.cross_entropy(logits, targets, reduction="sum")
    return F.cross_entropy(logits, batch[1], reduction="sum")


# A mean, a sum, a vector


@pytest.mark.parametrize(
    "microbatch", [pytest.param(B, marks=pytest.mark.long), 3, pytest.param(1, marks=pytest.mark.long)]
)
@pytest.mark.parametrize("given", [False, True])
@each_measure
@each_family
def test_a_sum_scores_as_a_mean(family, measure, given, microbatch):
    batch = family.batch(B)
    expected = _measured(family.model(), batch, measure, mean_loss, given, microbatch=microbatch)
    measured = _measured(family.model(), batch, measure, _sum, given, microbatch=microbatch)
    torch.testing.assert_close(measured, expected, rtol=1e-10, atol=1e-14)


@each_measure
@each_family
def test_a_vector_scores_as_a_mean(family, measure):
    batch = family.batch(B)
    expected = _measured(family.model(), batch, measure, mean_loss, True)
    for given in (False, True):
        measured = _measured(family.model(), batch, measure, own_losses, given)
        torch.testing.assert_close(measured, expected, rtol=1e-10, atol=1e-14)


@each_measure
def test_a_loss_in_a_mapping_or_a_sequence(measure):
    family, batch = FAMILIES[0], FAMILIES[0].batch(B)
    expected = _measured(family.model(), batch, measure, mean_loss, True)
    forms: list[LossFunction] = [
        lambda z, b: {"penalty": z.new_zeros(()), "total": mean_loss(z, b)},
        lambda z, b: (mean_loss(z, b), z.new_zeros(())),
    ]
    for form in forms:
        model = family.model()
        probe = StepProbe(measure, loss=form)
        probe.attach(model)
        assert torch.equal(probe_step(model, batch, probe), expected)
        probe.check()


@pytest.mark.parametrize("given", [False, True])
@each_measure
def test_a_loss_that_the_model_computes_itself(measure, given):
    """What hands the loss out says nothing about rows, so it is held against the cross-entropies."""

    class WithLoss(CausalLM):
        def forward(self, batch: dict[str, Tensor]) -> Any:
            return self.lm(**batch)

    def loss(outputs: Any, batch: Any) -> Tensor:
        return outputs["loss"]

    torch.manual_seed(0)
    model = WithLoss()
    measured = _measured(model, tokens(B), measure, loss, given)
    torch.testing.assert_close(measured, _measured(model, tokens(B), measure, mean_loss, False), rtol=1e-3, atol=1e-5)


def test_a_bare_language_model_is_known_to_shift():
    torch.manual_seed(0)
    lm, batch = CausalLM().lm.double(), tokens(B)
    probe = StepProbe(Loss())
    probe.attach(lm)
    outputs = lm(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    probe.before_forward(batch)
    probe.before_backward(batch, outputs, mean_loss(outputs, batch))
    found = probe.after_backward()
    assert found is not None
    torch.testing.assert_close(found, own_losses(outputs, batch).detach())
    probe.check()


# The model's own loss, when it is no cross-entropy


def _regression() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    model = Classifier(nn.Flatten(), nn.Linear(192, 3)).double()
    return model, (images(B)[0], torch.randn(B, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2)))


def _binary() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    model, (inputs, targets) = _regression()
    return model, (inputs, targets.gt(0).double())


KINDS: dict[str, tuple[Callable[[], tuple[nn.Module, Any]], LossFunction, LossFunction]] = {
    "mse": (_regression, lambda z, b: F.mse_loss(z, b[1]), lambda z, y: ((z - y) ** 2).mean()),
    "mse_sum": (_regression, lambda z, b: F.mse_loss(z, b[1], reduction="sum"), lambda z, y: ((z - y) ** 2).sum()),
    "huber": (_regression, lambda z, b: F.huber_loss(z, b[1]), lambda z, y: F.huber_loss(z, y)),
    "bce": (
        _binary,
        lambda z, b: F.binary_cross_entropy_with_logits(z, b[1]),
        lambda z, y: -(y * z.sigmoid().log() + (1 - y) * (1 - z.sigmoid()).log()).mean(),
    ),
    "smoothed": (
        lambda: (mlp().double(), images(B)),
        lambda z, b: F.cross_entropy(z, b[1], label_smoothing=0.2),
        lambda z, y: -0.8 * z.log_softmax(0)[y] - 0.2 * z.log_softmax(0).mean(),
    ),
    "focal": (
        lambda: (mlp().double(), images(B)),
        lambda z, b: ((1 - _p(z, b)) ** 2 * -_p(z, b).log()).mean(),
        lambda z, y: (1 - z.softmax(0)[y]) ** 2 * -z.log_softmax(0)[y],
    ),
}


def _p(z: Tensor, batch: Any) -> Tensor:
    return z.softmax(1).gather(1, batch[1][:, None])[:, 0]


@pytest.mark.parametrize("microbatch", [B, 3, 1])
@pytest.mark.parametrize("name", KINDS)
def test_the_models_own_loss(name, microbatch):
    build, loss, own = KINDS[name]
    torch.manual_seed(0)
    model, batch = build()
    measured = _measured(model, batch, Loss(), loss, True, microbatch=microbatch)
    with torch.no_grad():
        expected = torch.stack([own(z, y) for z, y in zip(model(batch), batch[1], strict=True)])
    torch.testing.assert_close(measured, expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("name", KINDS)
def test_mask_gradients_of_the_models_own_loss(name):
    build, loss, own = KINDS[name]
    torch.manual_seed(0)
    model, batch = build()
    measured = _measured(model, batch, MaskGradient("output"), loss, True, microbatch=3)
    outputs = model(batch).detach().requires_grad_()
    torch.stack([own(z, y) for z, y in zip(outputs, batch[1], strict=True)]).sum().backward()
    assert outputs.grad is not None
    torch.testing.assert_close(measured, (outputs * outputs.grad).sum(1).abs().detach(), rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("name", ["mse", "huber"])
def test_the_own_loss_of_a_regression_without_a_function_is_refused(name):
    build, loss, _ = KINDS[name]
    model, batch = build()
    with pytest.raises(ValueError, match="neither from a loss function nor as cross-entropies"):
        _measured(model, (batch[0], batch[1].sum(1)), Loss(), lambda z, b: z.sum(1).sub(b[1]).square().mean(), False)
    # Targets of the logits' shape might be class probabilities, until one looks.
    with pytest.raises(ValueError, match="no class probabilities"):
        _measured(model, batch, Loss(), loss, False)


def test_the_own_loss_of_a_function_that_looks_at_values():
    def looking(z: Tensor, batch: Any) -> Tensor:
        return F.mse_loss(z, batch[1]) if z.sum() > -1e9 else z.sum()

    model, batch = _regression()
    with pytest.raises(ValueError, match=r"cannot be evaluated for every sample.*torch\.func\.vmap"):
        _measured(model, batch, Loss(), looking, True)

    def looking_at_classes(z: Tensor, batch: Any) -> Tensor:
        return mean_loss(z, batch) if z.sum() > -1e9 else z.sum()

    family = FAMILIES[0]  # a cross-entropy in the end
    measured = _measured(family.model(), family.batch(B), Loss(), looking_at_classes, True)
    assert torch.equal(measured, _measured(family.model(), family.batch(B), Loss(), mean_loss, True))

    def focal(z: Tensor, batch: Any) -> Tensor:
        return KINDS["focal"][1](z, batch) if z.sum() > -1e9 else z.sum()

    with pytest.raises(ValueError, match="cannot be evaluated for every sample"):
        _measured(family.model(), family.batch(B), Loss(), focal, True)


# Neither


def _class_weighted(z: Tensor, batch: Any) -> Tensor:
    return F.cross_entropy(z, batch[1], weight=torch.linspace(0.5, 2, CLASSES, dtype=z.dtype))


def _contrastive(z: Tensor, batch: Any) -> Tensor:
    return F.cross_entropy(z @ z.T, torch.arange(len(z)))


def _cubed(z: Tensor, batch: Any) -> Tensor:
    return mean_loss(z, batch) ** 3


@pytest.mark.parametrize("loss", [_class_weighted, _contrastive, _cubed])
@each_measure
def test_what_is_neither_is_refused(loss, measure):
    family = FAMILIES[0]
    for microbatch in (B, 3):
        with pytest.raises(ValueError, match=r"neither weighs .*class weights.*plain mean.*ErrorNorm"):
            _measured(family.model(), family.batch(B), measure, loss, True, microbatch=microbatch)


def test_a_measure_of_predictions_asks_what_the_loss_is_made_of():
    family, batch = FAMILIES[0], FAMILIES[0].batch(B)
    _measured(family.model(), batch, ErrorNorm(), _class_weighted, True)
    with pytest.warns(UserWarning, match=r"not the cross-entropy .*softmax of the outputs as they are"):
        _measured(family.model(), batch, ErrorNorm(), _cubed, True)

    def other_targets(z: Tensor, b: Any) -> Tensor:
        return F.cross_entropy(z, b[2])

    strange = (*batch, batch[1].roll(1))
    with pytest.raises(ValueError, match="loss does not change with the targets that were found"):
        _measured(family.model(), strange, ErrorNorm(), other_targets, True)
    with pytest.warns(UserWarning, match="softmax of the outputs as they are"):
        _measured(family.model(), strange, Margin(), other_targets, True)  # it looks at no targets

    def of_probabilities(z: Tensor, b: Any) -> Tensor:
        return F.nll_loss(z.log(), b[1])

    class Probabilities(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = family.model()

        def forward(self, batch: Any) -> Tensor:
            return self.net(batch).softmax(1)

    for measure in (ErrorNorm(), Margin()):
        with pytest.raises(ValueError, match=r"when 1 is added to all outputs.*probabilities"):
            _measured(Probabilities(), batch, measure, of_probabilities, True)


def test_log_probabilities_are_logits():
    family, batch = FAMILIES[0], FAMILIES[0].batch(B)

    class LogProbabilities(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = family.model()

        def forward(self, batch: Any) -> Tensor:
            return self.net(batch).log_softmax(1)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        measured = _measured(LogProbabilities(), batch, ErrorNorm(), lambda z, b: F.nll_loss(z, b[1]), True)
    torch.testing.assert_close(measured, _measured(family.model(), batch, ErrorNorm(), mean_loss, True))


@pytest.mark.parametrize("measure", [ErrorNorm(), Loss()], ids=repr)
def test_a_loss_inside_that_is_of_something_else(measure):
    """One label set of several, which sums to one as a probability does, under a binary cross-entropy."""
    model, (inputs, _) = _regression()
    targets = F.one_hot(torch.arange(B) % 3).double()

    class WithLoss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = model

        def forward(self, batch: Any) -> Any:
            logits = self.net((batch["input_ids"],))
            return {"loss": F.binary_cross_entropy_with_logits(logits, batch["labels"]), "logits": logits}

    with pytest.raises(ValueError, match=r"the loss is made of something else"):
        _measured(WithLoss(), {"input_ids": inputs, "labels": targets}, measure, lambda z, b: z["loss"], False)

    def vector(z: Tensor, b: Any) -> Tensor:
        return (z - b[1]).square().mean(1)

    with pytest.raises(ValueError, match=r"the loss is made of something else"):
        _measured(model, (inputs, targets), ErrorNorm(), vector, False)


def _ignoring(value: int, z: Tensor, batch: Any) -> Tensor:
    return F.cross_entropy(z, batch[1], ignore_index=value)


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("measure", [ErrorNorm(), LastLayerGradient()], ids=repr)
def test_targets_out_of_range(measure, given):
    family, (inputs, targets) = FAMILIES[0], FAMILIES[0].batch(B)
    for value in (CLASSES, 255, -1):
        wrong = targets.clone()
        wrong[3] = value
        loss = functools.partial(_ignoring, value)
        with pytest.raises(ValueError, match=rf"from .*{value}.*5 classes apart.*mark with -100"):
            _measured(family.model(), (inputs, wrong), measure, loss, given)


# Later, and of other classes


class Changing:
    """A loss that is another one from some time on, as schedules of class weights and of label smoothing make it."""

    def __init__(self, before: LossFunction, after: LossFunction) -> None:
        self.before, self.after, self.is_late = before, after, False

    def __call__(self, z: Tensor, batch: Any) -> Tensor:
        return (self.after if self.is_late else self.before)(z, batch)


def test_class_weights_of_classes_that_the_first_microbatch_lacks():
    """Deferred re-weighting, and a rare class."""
    family, (inputs, _) = FAMILIES[0], FAMILIES[0].batch(B)
    rare = torch.tensor([1, 1, 1, 1, 9.0], dtype=torch.float64)

    def loss(z: Tensor, batch: Any) -> Tensor:
        return F.cross_entropy(z, batch[1], weight=rare)

    for measure in (MaskGradient(), Loss()):
        with pytest.raises(ValueError, match=r"sample of each of the classes 0 to 4.*neither weighs classes"):
            _measured(family.model(), (inputs, torch.arange(B) % 4), measure, loss, True)


def test_weights_on_the_classes_of_pixels():
    torch.manual_seed(0)
    model = Classifier(nn.Identity(), nn.Conv2d(3, 4, 1)).double()
    batch = images(B)[0], torch.randint(0, 3, (B, 8, 8))
    batch[1][0, 0] = -100

    def loss(z: Tensor, batch: Any, weight: Tensor | None = None) -> Tensor:
        return F.cross_entropy(z, batch[1], weight=weight)

    _measured(model, batch, MaskGradient("output"), loss, True)
    rare = torch.tensor([1, 1, 1, 5.0], dtype=torch.float64)
    with pytest.raises(ValueError, match="neither weighs classes"):
        _measured(model, batch, MaskGradient("output"), lambda z, b: loss(z, b, rare), True)


def test_a_loss_that_changes_is_looked_at_again():
    family, batch = FAMILIES[0], FAMILIES[0].batch(B)
    loss = Changing(mean_loss, _class_weighted)
    probe = StepProbe(MaskGradient(), loss=loss)
    probe.attach(model := family.model())
    for _ in range(2):
        probe_step(model, batch, probe, loss=loss)
        probe.check()
        probe.look_again()
    loss.is_late = True
    probe_step(model, batch, probe, loss=loss)
    with pytest.raises(ValueError, match="neither weighs"):
        probe.check()


def test_labels_that_are_smoothed_later():
    family, batch = FAMILIES[0], FAMILIES[0].batch(B)
    smoothed = KINDS["smoothed"][1]
    loss = Changing(mean_loss, smoothed)
    probe = StepProbe(Loss(), loss=loss)
    probe.attach(model := family.model())
    for is_late, function in ((False, mean_loss), (True, smoothed)):
        loss.is_late = is_late
        probe.look_again()
        measured = probe_step(model, batch, probe, loss=loss)
        probe.check()
        assert torch.equal(measured, probe_step(model, batch, probe, loss=loss))
        assert torch.equal(measured, _measured(model, batch, Loss(), function, True))


def test_class_weights_show_among_samples_sorted_by_class():
    """The rows that are compared are of different classes, where the microbatch has any."""
    family = FAMILIES[0]
    inputs, _ = family.batch(40)
    targets = torch.zeros(40, dtype=torch.int64)
    targets[17] = 4
    with pytest.raises(ValueError, match="neither weighs"):
        _measured(family.model(), (inputs, targets), MaskGradient(), _class_weighted, True)


def test_a_probe_that_is_not_asked_goes_on():
    """Until check(), the kind is decided on the device."""
    family, batch = FAMILIES[0], FAMILIES[0].batch(B)
    expected = _measured(family.model(), batch, MaskGradient(), mean_loss, True)
    model = family.model()
    probe = StepProbe(MaskGradient(), loss=_sum)
    probe.attach(model)
    for _ in range(3):
        torch.testing.assert_close(probe_step(model, batch, probe, loss=_sum), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("loss", [KINDS["smoothed"][1], _class_weighted])
def test_without_a_function_it_is_said(loss):
    """Smoothed labels and class weights look alike from outside: no reason to stop a run, none to be silent."""
    family, batch = FAMILIES[0], FAMILIES[0].batch(B)
    with pytest.warns(UserWarning, match=r"taken for a mean all the same.*Give the loss function"):
        _measured(family.model(), batch, MaskGradient(), loss, False)
    with pytest.warns(UserWarning, match="taken for a sum all the same"):
        _measured(family.model(), batch, MaskGradient(), lambda z, b: B * loss(z, b), False)


def test_without_classes_it_is_said():
    model, batch = _regression()
    with pytest.warns(UserWarning, match=r"cannot be told.*Give the loss function"):
        _measured(model, (batch[0], batch[1].sum(1)), MaskGradient(), lambda z, b: F.mse_loss(z.sum(1), b[1]), False)


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_is_no_other_kind(dtype, given):
    for family in (FAMILIES[0], FAMILIES[-1]):
        batch = family.batch(64, dtype)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for loss in (mean_loss, _sum):
                model = family.model(dtype)
                probe = StepProbe(MaskGradient(), loss=loss if given else None)
                probe.attach(model)
                for start in range(0, 64, 16):
                    probe_step(model, rows(batch, start, start + 16), probe, loss=loss)
                    probe.check()
                probe.attach(model)  # another run, another look


def test_losses_that_algorithms_blend_are_means():
    """MixUp and the like interpolate the loss after the model's own function, which is what is looked at."""
    family, (inputs, targets) = FAMILIES[0], FAMILIES[0].batch(B)

    def blended(z: Tensor, batch: Any) -> Tensor:
        return 0.3 * mean_loss(z, batch) + 0.7 * mean_loss(z, (batch[0], batch[1].roll(1)))

    for loss in (blended, lambda z, b: F.cross_entropy(z, b[1], label_smoothing=0.3)):
        model = family.model()
        probe = StepProbe(MaskGradient(), loss=mean_loss)
        probe.attach(model)
        assert (probe_step(model, (inputs, targets), probe, loss=loss) > 0).all()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            probe.check()


@pytest.mark.parametrize("given", [False, True])
@each_measure
def test_samples_without_targets_are_no_other_kind(measure, given):
    family = FAMILIES[-1]
    batch = family.batch(B)
    batch = {**batch, "labels": batch["labels"].clone()}
    batch["labels"][2] = -100
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        measured = _measured(family.model(), batch, measure, mean_loss, given)
    assert measured[2] == 0
    assert (measured > 0).sum() == B - 1
    batch["labels"][:] = -100
    probe = StepProbe(measure, loss=mean_loss if given else None)
    probe.attach(model := family.model())
    probe_step(model, batch, probe)
    with pytest.warns(UserWarning, match="cannot be told"):
        probe.check()


def test_a_factor_per_class_within_the_mean_is_part_of_the_own_loss():
    """Of a class in the microbatch, and of one that comes later."""
    family, (inputs, targets) = FAMILIES[0], FAMILIES[0].batch(64)
    factor = torch.tensor([1, 1, 9, 1, 1.0], dtype=torch.float64)

    def loss(z: Tensor, batch: Any) -> Tensor:
        return (factor[batch[1]] * F.cross_entropy(z, batch[1], reduction="none")).mean()

    rare = torch.where(targets == 2, 1, targets)
    rare[37] = 2
    without = torch.where(targets == 2, 1, targets)
    probe = StepProbe(Loss(), loss=loss)
    probe.attach(model := family.model())
    for labels in (rare, without, rare):
        measured = probe_step(model, (inputs, labels), probe, loss=loss)
        probe.check()
        with torch.no_grad():
            expected = factor[labels] * F.cross_entropy(model((inputs, labels)), labels, reduction="none")
        torch.testing.assert_close(measured, expected)


def _tokens(size: int) -> dict[str, Tensor]:
    """All of one length, every target counted."""
    ids = torch.arange(size * 12).view(size, 12) % 61
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


def _of_masked(outputs: Any, batch: Any) -> Tensor:
    """Knows another mark for what does not count."""
    logits, targets = outputs.logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten()
    losses = F.cross_entropy(logits, targets.clamp(min=0), reduction="none")
    return losses.mean()


def test_targets_that_the_loss_counts_though_they_should_not():
    family = FAMILIES[-1]
    for measure in (MaskGradient(), Loss()):
        with pytest.raises(ValueError, match=r"half of one sample's targets set to -100.*as a vector"):
            _measured(family.model(), _tokens(B), measure, _of_masked, True)
        _measured(family.model(), _tokens(B), measure, mean_loss, True)


def test_labels_that_are_shifted_within_the_loss():
    class Unsaid(CausalLM):
        shift_labels = False

    torch.manual_seed(0)
    with pytest.raises(ValueError, match=r"against the target of the next one.*model\.shift_labels = True"):
        _measured(Unsaid().double(), _tokens(B), ErrorNorm(), mean_loss, True)


@pytest.mark.parametrize("measure", [MaskGradient(), Loss(), ErrorNorm()], ids=repr)
def test_batches_and_outputs_of_other_kinds(measure):
    """Logits in an object; targets of another width; several sets of labels; a loss that cannot take single rows."""
    family, (inputs, targets) = FAMILIES[0], FAMILIES[0].batch(12)

    class Holding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = family.model()

        def forward(self, batch: Any) -> Any:
            return SimpleNamespace(logits=self.net(batch))

    def of_object(outputs: Any, batch: Any) -> Tensor:
        return F.cross_entropy(outputs.logits, batch[1].long())

    expected = _measured(family.model(), (inputs, targets), measure, mean_loss, True)
    for wide in (targets, targets.int(), targets.to(torch.uint8)):
        assert torch.equal(_measured(Holding(), (inputs, wide), measure, of_object, True), expected)

    def focal(outputs: Any, batch: Any) -> Tensor:
        return KINDS["focal"][1](outputs.logits, batch)

    if isinstance(measure, Loss):  # which evaluates it on every sample
        of_tensors = _measured(family.model(), (inputs, targets), measure, KINDS["focal"][1], True)
        assert torch.equal(_measured(Holding(), (inputs, targets), measure, focal, True), of_tensors)

    def of_whole_batches(z: Tensor, batch: Any) -> Tensor:
        if len(z) != 12:
            raise ValueError("Expected more than 1 value per channel when training")
        return mean_loss(z, batch)

    with pytest.warns(UserWarning, match="single rows"):
        found = _measured(family.model(), (inputs, targets), measure, of_whole_batches, True)
    assert torch.equal(found, expected)


def test_several_sets_of_labels():
    """Of which none is the targets: what needs none goes on."""
    model, (inputs, targets) = mlp().double(), images(B)
    batch = {"x": inputs, "labels": {"a": targets, "b": targets}}
    probe = StepProbe(MaskGradient(), loss=lambda z, b: F.cross_entropy(z, b["labels"]["a"]))
    probe.attach(model)
    probe.before_forward(batch)
    outputs = model((inputs,))
    loss = F.cross_entropy(outputs, targets)
    probe.before_backward(batch, outputs, loss)
    loss.backward()
    found = probe.after_backward()
    assert found is not None
    probe.check()
    torch.testing.assert_close(found, _measured(mlp_like(model), (inputs, targets), MaskGradient(), mean_loss, True))


def mlp_like(model: nn.Module) -> nn.Module:
    other = mlp().double()
    other.load_state_dict(model.state_dict())
    return other


def test_a_loss_of_another_shape():
    family, batch = FAMILIES[0], FAMILIES[0].batch(B)
    with pytest.raises(ValueError, match=r"loss has shape \(8, 1\).*8, one for each sample"):
        _measured(family.model(), batch, MaskGradient(), lambda z, b: own_losses(z, b)[:, None], True)


@pytest.mark.long
def test_many_classes_are_looked_at_quickly():
    """Not all of them: a few rows of a large vocabulary are many numbers."""
    torch.manual_seed(0)
    model = Classifier(nn.Identity(), nn.Linear(4, 30_000))
    batch = torch.randn(4, 32, 4), torch.randint(0, 30_000, (4, 32))
    calls = []

    def loss(z: Tensor, b: Any) -> Tensor:
        calls.append(z.numel())
        return F.cross_entropy(z.flatten(0, 1), b[1].flatten(), label_smoothing=0.1)

    _measured(model, batch, MaskGradient("output"), loss, True)
    assert sum(calls) < 3e8


def test_a_loss_that_cannot_be_tried_elsewhere_gets_no_labels_that_it_has_not_seen(monkeypatch):
    """As one with tensors of its own on a GPU, where a label beyond its classes would end the process."""
    seen: list[int] = []

    def loss(z: Tensor, batch: Any) -> Tensor:
        seen.append(int(batch[1].max()))
        return _class_weighted(z, batch)

    def elsewhere(rows: Any) -> Any:
        raise RuntimeError("Expected all tensors to be on the same device")

    monkeypatch.setattr("ted_stream.pruning.loss_kinds.Rows.on_cpu", elsewhere)
    family, (inputs, _) = FAMILIES[0], FAMILIES[0].batch(B)
    with pytest.raises(ValueError, match="neither"):
        _measured(family.model(), (inputs, torch.tensor([3, 1] * 4)), MaskGradient(), loss, True)
    assert max(seen) == 3
    family = FAMILIES[-1]
    _measured(family.model(), _tokens(B), MaskGradient(), _of_masked, True)  # it has seen nothing left out


# Of a trainer that counts the targets of several microbatches and ranks


def _told(loss: float, counted: Counted) -> float:
    """By what a loss of two samples with 3 and 1 targets is taken to divide their sum, 4 times 2.0 of each target."""
    labels = torch.tensor([[0, 1, 0], [1, -100, -100]])
    logits = torch.zeros(2, 3, 2)
    reading = read_value(
        logits, {"labels": labels}, torch.tensor(loss, requires_grad=True), shifted=False, counted=counted
    )
    return float(reading.divisor_of(torch.tensor(4), counted))


@pytest.mark.parametrize("count", [4, 6, 12, 40])
@pytest.mark.parametrize("ranks", [1, 2, 8])
def test_what_the_trainer_divides_by_is_told_by_the_value(count: int, ranks: int) -> None:
    """``count`` targets in the step on all ranks, of which the microbatch has 4."""
    total, counted = 4 * math.log(2), Counted(torch.tensor(count / ranks), multiplier=ranks)
    assert _told(total / (count / ranks), counted) == pytest.approx(count / ranks)
    if count not in (4, 4 * ranks, 4 * ranks**2):
        assert _told(total / 4, counted) == 4, "a loss of ones own, a plain mean"
        assert _told(ranks * total / 4, counted) == pytest.approx(4 / ranks), "which the trainer has multiplied"


def test_equal_counts_are_the_trainers() -> None:
    """Which may differ in the next microbatch; rounding is not to decide."""
    for seed in range(50):
        torch.manual_seed(seed)
        logits, labels = torch.randn(4, 5, 7), torch.randint(7, (4, 5))
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum") / 20
        counted = Counted(torch.tensor(20.0))
        reading = read_value(logits, {"labels": labels}, loss.requires_grad_(), shifted=False, counted=counted)
        assert bool(reading.is_divided)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_squared_error_of_several_outputs_is_known_by_its_value(reduction):
    """Whose targets have the shape of class probabilities, and sum to something else."""
    torch.manual_seed(0)
    model, batch = _regression()
    outputs = model(batch).detach()
    gradient = 2 * (outputs - batch[1]) / (outputs.shape[1] if reduction == "mean" else 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = _measured(
            model, batch, MaskGradient("output"), lambda z, b: F.mse_loss(z, b[1], reduction=reduction), False
        )
    torch.testing.assert_close(found, (outputs * gradient).sum(1).abs(), rtol=1e-10, atol=1e-14)


def test_class_probabilities_are_no_targets_of_a_squared_error():
    model, batch = _regression()
    probabilities = batch[1].softmax(1)
    with pytest.raises(ValueError, match="the loss is made of something else"):
        _measured(model, (batch[0], probabilities), ErrorNorm(), lambda z, b: F.mse_loss(z, b[1]), False)
    with pytest.warns(UserWarning, match="cannot be told"):
        _measured(model, (batch[0], probabilities), MaskGradient(), lambda z, b: F.cross_entropy(z, b[1]), False)


@pytest.mark.parametrize("size", [1, B])
def test_a_squared_error_is_known_by_its_value(size):
    """Of a regression head, as for STS-B: |∂(f − y)²/∂δ| = 2 |f − y| |f| for a head without a bias."""
    torch.manual_seed(0)
    model = Classifier(nn.Flatten(), nn.Linear(192, 1, bias=False)).double()
    batch = (images(size)[0], torch.linspace(0.5, 4.5, size, dtype=torch.float64))
    f = model(batch).detach().squeeze(1)
    expected = 2 * (f - batch[1]).abs() * f.abs()
    kinds = ("mean", "sum") if size > 1 else ("mean",)
    for reduction in kinds:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = _measured(
                model,
                batch,
                MaskGradient(),
                lambda outputs, batch, how=reduction: F.mse_loss(outputs.squeeze(1), batch[1], reduction=how),
                False,
            )
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)
    with pytest.warns(UserWarning, match="cannot be told"):
        _measured(
            model, batch, MaskGradient(), lambda outputs, batch: (outputs.squeeze(1) - batch[1]).abs().mean(), False
        )
