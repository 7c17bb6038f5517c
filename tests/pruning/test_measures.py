"""Every measure against formulas of the test's own, one sample and one token at a time."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from trainer import CLASSES, FAMILIES, Family, images, logits_of, mean_loss, mlp, own_losses, probe_step

from ted_stream.pruning import batches, measures, predictions
from ted_stream.pruning.measures import (
    MEASURES,
    Correct,
    Entropy,
    ErrorNorm,
    LastLayerGradient,
    Loss,
    Margin,
    MaskGradient,
    Measure,
    TrueProbability,
    make_measure,
)
from ted_stream.pruning.probe import StepProbe

B = 8
each_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


def _measure(model: nn.Module, batch: Any, measure: Measure, **options: Any) -> Tensor:
    probe = StepProbe(measure)
    probe.attach(model)
    return probe_step(model, batch, probe, **options)


# Of the predicted p, the target's one-hot y, and the features f of one position

Reference = Callable[[Tensor, Tensor, Tensor], Tensor]
REFERENCES: dict[str, Reference] = {
    "logit_margin": lambda p, y, f: (p[y.argmax()] / p[torch.arange(len(p)) != y.argmax()].max()).log(),
    "correct": lambda p, y, f: (p.argmax() == y.argmax()).double(),
    "entropy": lambda p, y, f: -(p * p.log()).sum(),
    "error_norm": lambda p, y, f: ((p - y) ** 2).sum().sqrt(),
    "last_layer_gradient": lambda p, y, f: (((p - y) ** 2).sum() * ((f**2).sum() + 1)).sqrt(),
    "loss": lambda p, y, f: -(y * p.log()).sum(),
    "margin": lambda p, y, f: p.sort().values[-1] - p.sort().values[-2],
    "true_probability": lambda p, y, f: (p * y).sum(),
}


def _without_bias(p: Tensor, y: Tensor, f: Tensor) -> Tensor:
    return (((p - y) ** 2).sum() * (f**2).sum()).sqrt()


each_measure = pytest.mark.parametrize("name", REFERENCES)


def _expected(family: Family, model: Any, batch: Any, reference: Reference) -> Tensor:
    seen: list[Tensor] = []
    handle = family.output_layer(model).register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        logits = logits_of(model(batch))
    handle.remove()
    p = logits.softmax(-1)
    identity = torch.eye(p.shape[-1], dtype=p.dtype)
    if not family.is_language_model:
        return torch.stack([reference(p[k], identity[y], seen[0][k]) for k, y in enumerate(batch[1].tolist())])
    values = []
    for k, labels in enumerate(batch["labels"].tolist()):
        own = [
            reference(p[k, t - 1], identity[labels[t]], seen[0][k, t - 1])
            for t in range(1, len(labels))
            if labels[t] != -100
        ]
        values.append(torch.stack(own).mean())
    return torch.stack(values)


def test_every_measure_has_a_reference():
    assert set(REFERENCES) == set(MEASURES) - {"mask_gradient"}


@each_measure
@each_family
def test_equals_its_formula(family, name):
    model, batch = family.model(), family.batch(B)
    if family.couples_samples:
        model.eval()
    reference = REFERENCES[name]
    if name == "last_layer_gradient" and family.is_language_model:
        assert family.output_layer(model).bias is None
        reference = _without_bias
    expected = _expected(family, model, batch, reference)
    variants: list[dict[str, Any]] = [{}, {"microbatch": 3, "keep_ratio": 0.37, "loss_scale": 1024.0}]
    for options in variants:
        measured = _measure(model, batch, make_measure(name), **options)
        assert measured.dtype == torch.float64
        assert not measured.requires_grad
        torch.testing.assert_close(measured, expected, rtol=1e-10, atol=1e-14)


@each_measure
@each_family
def test_the_same_at_every_batch_size(family, name):
    base = _measure(family.model().eval(), family.batch(B), make_measure(name))
    large = _measure(family.model().eval(), family.batch(64), make_measure(name), microbatch=24)[:B]
    torch.testing.assert_close(large, base, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("bias", [False, True])
def test_the_last_layers_gradient_is_that_of_a_backward_pass(bias):
    model, batch = mlp(bias=bias).double(), images(B)
    measured = _measure(model, batch, LastLayerGradient())
    for k, loss in enumerate(own_losses(model(batch), batch)):
        gradients = torch.autograd.grad(loss, list(model.head.parameters()), retain_graph=True)
        norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
        torch.testing.assert_close(measured[k], norm, rtol=1e-10, atol=0)


@each_measure
def test_gradients_are_those_without_the_measure(name):
    for family in (FAMILIES[0], FAMILIES[-1]):
        plain, model, batch = family.model(), family.model(), family.batch(B)
        probe_step(plain, batch, StepProbe(None), microbatch=3)
        probe = StepProbe(make_measure(name))
        probe.attach(model)
        for _ in range(2):
            probe_step(model, batch, probe, microbatch=3)
            for parameter, other in zip(model.parameters(), plain.parameters(), strict=True):
                assert parameter.grad is not None
                assert other.grad is not None
                assert torch.equal(parameter.grad, other.grad)


@each_measure
def test_under_bfloat16_autocast(name):
    for family in (FAMILIES[0], FAMILIES[-1]):
        exact = _measure(family.model(), family.batch(64), make_measure(name))
        model, batch = family.model(torch.float32), family.batch(64, torch.float32)
        bfloat16 = _measure(
            model, batch, make_measure(name), precision=lambda: torch.autocast("cpu", dtype=torch.bfloat16)
        )
        assert bfloat16.dtype == torch.float32
        errors = (bfloat16.double() - exact).abs() / exact.abs().max()
        # Margins of near ties turn around, and so does who is right.
        assert errors.quantile(0.9) < 0.02
        assert errors.mean() < 0.02
        single = _measure(model, batch, make_measure(name))
        assert ((single.double() - exact).abs() / exact.abs().max()).mean() < 1e-5


def test_ranges_of_certain_and_uncertain_predictions():
    """Of logits that are equal, far apart, and masked out."""
    logits = torch.tensor([[0.0, 0, 0], [60, 0, 0], [0, 60, 0], [0, 0, -math.inf]])
    batch = (torch.zeros(4, 1), torch.tensor([0, 0, 0, 1]))
    expected = {
        Margin: [0, 1, 1, 0],
        Entropy: [math.log(3), 0, 0, math.log(2)],
        Correct: [1, 1, 0, 0],
        TrueProbability: [1 / 3, 1, 0, 1 / 2],
        ErrorNorm: [math.sqrt(2 / 3), 0, math.sqrt(2), math.sqrt(1 / 2)],
    }
    for measure, values in expected.items():
        probe = StepProbe(measure())
        probe.attach(nn.Identity())
        probe.before_forward(batch)
        outputs = logits.clone().requires_grad_()
        probe.before_backward(batch, outputs, mean_loss(outputs, batch))
        found = probe.after_backward()
        assert found is not None
        torch.testing.assert_close(found, torch.tensor(values, dtype=torch.float32), atol=1e-6, rtol=0)


# Class probabilities, pixels, samples without targets, outputs without targets


@each_measure
def test_class_probabilities(name):
    """As MixUp makes them; of classes alone they give what the classes give."""
    model, (inputs, targets) = mlp().double(), images(B)
    one_hot = F.one_hot(targets, CLASSES).double()
    soft = 0.7 * one_hot + 0.3 * one_hot.roll(1, 0)

    def loss(outputs: Tensor, batch: Any) -> Tensor:
        return F.cross_entropy(outputs, batch[1])

    measure = make_measure(name)
    hard = _measure(model, (inputs, targets), measure, loss=loss)
    torch.testing.assert_close(_measure(model, (inputs, one_hot), measure, loss=loss), hard, rtol=1e-9, atol=1e-12)
    with torch.no_grad():
        p, f = model((inputs, targets)).softmax(1), model.body(inputs)
    expected = torch.stack([REFERENCES[name](p[k], soft[k], f[k]) for k in range(B)])
    torch.testing.assert_close(_measure(model, (inputs, soft), measure, loss=loss), expected, rtol=1e-9, atol=1e-12)


def test_targets_that_are_no_probabilities():
    model = mlp().double()
    batch = (images(B)[0], torch.rand(B, CLASSES, dtype=torch.float64) + 0.5)
    for name in sorted(set(MEASURES) - {"mask_gradient", "loss"}):
        probe = StepProbe(make_measure(name))
        probe.attach(model)
        probe_step(model, batch, probe, loss=lambda z, b: F.binary_cross_entropy_with_logits(z, b[1].clamp(max=1)))
        with pytest.raises(ValueError, match=r"no class probabilities.*MaskGradient, or Loss"):
            probe.check()
        probe.check()  # once


def _pixels() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    class Segmenter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, CLASSES, 1)

        def forward(self, batch: Any) -> Tensor:
            return self.head(self.stem(batch[0]).relu())

    torch.manual_seed(0)
    targets = torch.randint(0, CLASSES, (B, 8, 8))
    targets[0, :3] = -100
    targets[1] = -100
    return Segmenter().double(), (images(B)[0], targets)


@pytest.mark.parametrize("name", sorted(set(REFERENCES) - {"last_layer_gradient"}))
@pytest.mark.parametrize("chunk", [1 << 24, 128, 1])
def test_pixels_and_small_chunks(name, chunk, monkeypatch):
    """Classes second; the same however few logits are widened at a time; 0 for a sample without targets."""
    monkeypatch.setattr(predictions, "_CHUNK", chunk)
    model, batch = _pixels()
    measured = _measure(model, batch, make_measure(name), loss=lambda z, b: F.cross_entropy(z, b[1]))
    with torch.no_grad():
        p = model(batch).softmax(1)
    for k in range(B):
        own = [
            REFERENCES[name](p[k, :, i, j], F.one_hot(batch[1][k, i, j], CLASSES).double(), p)
            for i in range(8)
            for j in range(8)
            if batch[1][k, i, j] != -100
        ]
        expected = torch.stack(own).mean().item() if own else 0.0
        assert measured[k].item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("name", sorted(REFERENCES))
def test_tokens_in_small_chunks(name, monkeypatch):
    family = FAMILIES[-1]
    whole = _measure(family.model(), family.batch(B), make_measure(name))
    monkeypatch.setattr(predictions, "_CHUNK", 300)  # less than a row of tokens
    torch.testing.assert_close(_measure(family.model(), family.batch(B), make_measure(name)), whole, rtol=1e-12, atol=0)


def test_no_copy_of_all_logits_is_made(monkeypatch):
    """What is widened at a time is bounded, whatever the vocabulary."""
    monkeypatch.setattr(predictions, "_CHUNK", 1000)
    sizes: list[int] = []

    class Watched(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if (
                isinstance(result, Tensor)
                and result.untyped_storage().data_ptr() != logits.untyped_storage().data_ptr()
            ):
                sizes.append(result.numel())
            return result

    logits = torch.randn(4, 30, 50).bfloat16()
    labels = torch.randint(0, 50, (4, 30))
    with Watched():
        batches.per_sample_cross_entropy(logits, {"labels": labels}, shifted=True)
    assert max(sizes) <= 1000


@pytest.mark.parametrize("measure", [Margin(), Entropy()], ids=repr)
def test_what_needs_no_targets(measure):
    model = mlp().double()
    inputs, targets = images(B)
    expected = _measure(model, (inputs, targets), measure)
    probe = StepProbe(measure)
    probe.attach(model)
    batch = probe.before_forward((inputs,))
    outputs = model(batch)
    probe.before_backward(batch, outputs, outputs.square().mean())
    found = probe.after_backward()
    assert found is not None
    assert torch.equal(found, expected)
    probe.check()
    assert "No targets" in _refusal(ErrorNorm(), outputs, (inputs,))


# Refused


def _refusal(measure: Measure, outputs: Any, batch: Any) -> str:
    probe = StepProbe(measure)
    probe.attach(nn.Linear(1, 1))
    probe.before_forward(batch)
    with pytest.raises(ValueError, match=r".") as caught:
        probe.before_backward(batch, outputs, torch.ones((), requires_grad=True) * 1)
    return str(caught.value)


def test_outputs_and_targets_that_do_not_fit():
    x = torch.zeros(4, 3)
    logits = torch.randn(4, 5)
    for outputs, targets in [
        (logits, torch.zeros(4, 2)),  # regression
        (logits[:, :1], torch.zeros(4)),
        (logits[:, 0], torch.zeros(4)),
        (logits[:, :1], torch.zeros(4, dtype=torch.int64)),  # one logit
        (torch.randn(4, 7, 5), torch.zeros(4, dtype=torch.int64)),
    ]:
        text = _refusal(ErrorNorm(), outputs, (x, targets))
        assert "not the logits of two or more classes" in text
        assert "MaskGradient" in text
    assert "tuple hold no logits" in _refusal(ErrorNorm(), (logits, logits), (x, torch.zeros(4, dtype=torch.int64)))


def test_a_layer_without_a_feature_vector_per_position():
    model, batch = _pixels()
    with pytest.raises(ValueError, match=r"input has shape \(8, 6, 8, 8\).*\(8, 8, 8, 5\).*ErrorNorm"):
        _measure(model, batch, LastLayerGradient(), loss=lambda z, b: F.cross_entropy(z, b[1]))


# By name


def test_measures_by_name():
    assert list(MEASURES) == sorted(MEASURES)
    for name, measure in MEASURES.items():
        made = make_measure(name)
        assert type(made) is measure
        assert eval(repr(made), dict(vars(measures))) == made
    made = make_measure("mask_gradient", site="output", norm=2)
    assert made == MaskGradient("output", 2)
    assert eval(repr(made), dict(vars(measures))) == made
    assert repr(Loss()) == "Loss()"


def test_unknown_measures_and_settings():
    wrong: list[Any] = ["losses", None, ["loss"]]
    for name in wrong:
        with pytest.raises(ValueError, match="must be one of correct, entropy"):
            make_measure(name)
    with pytest.raises(ValueError, match="'loss' has no setting 'site'; it has none"):
        make_measure("loss", site="input")
    with pytest.raises(ValueError, match="no setting 'alpha'; it has 'site', 'norm'"):
        make_measure("mask_gradient", alpha=1)
    with pytest.raises(ValueError, match="norm is 3"):
        make_measure("mask_gradient", norm=3)
