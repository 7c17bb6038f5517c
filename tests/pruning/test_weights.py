from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from trainer import (
    FAMILIES,
    CausalLM,
    Family,
    convnet,
    images,
    logits_of,
    mean_loss,
    microbatches,
    mlp,
    own_losses,
    probe_step,
    tokens,
)

from ted_stream.pruning.measures import ErrorNorm, LastLayerGradient, Loss, MaskGradient, Measure
from ted_stream.pruning.probe import StepProbe

B = 8
WEIGHTS = torch.linspace(0.25, 3, B, dtype=torch.float64)[torch.tensor([3, 0, 7, 1, 5, 2, 6, 4])]


class LossInside(CausalLM):
    """A language model that returns its loss, a mean over the batch's tokens, beside the logits."""

    def forward(self, batch: dict[str, Tensor]) -> Any:
        logits = super().forward(batch).logits
        return {"loss": mean_loss(logits, batch), "logits": logits}


def _inner(outputs: Any, batch: Any) -> Tensor:
    return outputs["loss"]


CASES = [
    *((family, mean_loss) for family in FAMILIES if family.name in ("convnet", "transformer", "causal_lm")),
    (Family("causal_lm_with_loss", LossInside, tokens, is_language_model=True), _inner),
]
each_case = pytest.mark.parametrize(("family", "loss"), CASES, ids=[family.name for family, _ in CASES])


def _weighted_loss(outputs: Any, batch: Any, weights: Tensor) -> Tensor:
    """Σ w_k ℓ_k / B; of tokens Σ_k w_k Σ_t ℓ_kt / n, written out."""
    logits = outputs["logits"] if isinstance(outputs, dict) else logits_of(outputs)
    if not isinstance(batch, dict):
        return (weights * F.cross_entropy(logits, batch[1], reduction="none")).mean()
    targets = batch["labels"][:, 1:]
    losses = F.cross_entropy(logits[:, :-1].movedim(-1, 1), targets, reduction="none")
    return (weights[:, None] * losses).sum() / targets.ne(-100).sum()


def _expected(family: Family, microbatch: int) -> list[Tensor]:
    model, batch = family.model(), family.batch(B)
    for part, weights in zip(microbatches(batch, B, microbatch), WEIGHTS.split(microbatch), strict=True):
        (_weighted_loss(model(part), part, weights) * (len(weights) / B * 7)).backward()
    return [_gradient(parameter) for parameter in model.parameters()]


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def _check_gradients(model: nn.Module, expected: list[Tensor]) -> None:
    for (name, parameter), gradient in zip(model.named_parameters(), expected, strict=True):
        scale = gradient.abs().max().item()
        torch.testing.assert_close(
            _gradient(parameter), gradient, rtol=1e-12, atol=1e-13 * scale, msg=lambda text, name=name: name + text
        )


@pytest.mark.parametrize("microbatch", [B, 3])
@each_case
def test_equals_weights_in_the_loss(family, loss, microbatch):
    expected = _expected(family, microbatch)
    measures: list[Measure | None] = [None, MaskGradient("features"), MaskGradient("output", 1), ErrorNorm(), Loss()]
    for measure in measures:
        model, batch = family.model(), family.batch(B)
        probe = StepProbe(measure, weighted=True)
        probe.attach(model)
        for _ in range(2):  # before and after the layer is known
            probe_step(model, batch, probe, weights=WEIGHTS, microbatch=microbatch, loss_scale=7.0, loss=loss)
            _check_gradients(model, expected)
        assert probe.layer == ("lm.lm_head" if family.is_language_model else "head")


@pytest.mark.long
@each_case
def test_equals_weights_in_the_loss_of_a_compiled_model(family, loss):
    torch.compiler.reset()
    model: Any = torch.compile(family.model(), backend="aot_eager")
    probe = StepProbe(MaskGradient("features"), weighted=True)
    probe.attach(model)
    batch = family.batch(B)
    measured = probe_step(model, batch, probe, weights=WEIGHTS, loss_scale=7.0, loss=loss)
    _check_gradients(model, _expected(family, B))
    plain = family.model()
    unweighted = StepProbe(MaskGradient("features"))
    unweighted.attach(plain)
    torch.testing.assert_close(measured, probe_step(plain, batch, unweighted, loss=loss), rtol=1e-10, atol=0)


@pytest.mark.parametrize(
    "measure",
    [
        *(MaskGradient(site, norm) for site in ("input", "features", "output") for norm in (None, 1, 2)),
        ErrorNorm(),
        LastLayerGradient(),
        Loss(),
    ],
    ids=repr,
)
@each_case
def test_scores_are_those_of_the_unweighted_loss(family, loss, measure):
    batch = family.batch(B)
    measured = []
    for weights in (None, WEIGHTS):
        model = family.model()
        probe = StepProbe(measure, weighted=True)
        probe.attach(model)
        measured.append(probe_step(model, batch, probe, weights=weights, microbatch=3, loss=loss))
    torch.testing.assert_close(measured[1], measured[0], rtol=1e-11, atol=0)


def test_a_hugging_face_loss_computed_inside():
    class WithLoss(CausalLM):
        def forward(self, batch: dict[str, Tensor]) -> Any:
            return self.lm(**batch)

    torch.manual_seed(0)
    model, batch = WithLoss(), tokens(B)
    probe = StepProbe(None, weighted=True)
    probe.attach(model)
    probe_step(model, batch, probe, weights=WEIGHTS.float(), loss=lambda outputs, batch: outputs.loss)
    found = [_gradient(parameter) for parameter in model.parameters()]
    model.zero_grad()
    probe.detach()
    _weighted_loss(model(batch), batch, WEIGHTS.float()).backward()
    for parameter, gradient in zip(model.parameters(), found, strict=True):
        torch.testing.assert_close(gradient, _gradient(parameter), rtol=1e-4, atol=1e-6)


def test_weights_of_one_and_none_leave_everything_as_it_is():
    family = FAMILIES[0]
    batch, plain = family.batch(B), family.model()
    probe_step(plain, batch, StepProbe(None), microbatch=3)
    for weights in (None, torch.ones(B)):
        model = family.model()
        probe = StepProbe(None, weighted=True)
        probe.attach(model)
        assert probe_step(model, batch, probe, weights=weights, microbatch=3).numel() == 0
        assert probe.layer == "head"
        for parameter, other in zip(model.parameters(), plain.parameters(), strict=True):
            assert torch.equal(_gradient(parameter), _gradient(other))


def test_under_bfloat16_and_a_loss_vector():
    family = FAMILIES[0]
    batch, model = family.batch(B, torch.float32), family.model(torch.float32)
    probe = StepProbe(MaskGradient(), weighted=True)
    probe.attach(model)
    weights = torch.tensor([2.0, 1, 1, 0.5, 1, 4, 1, 1])
    probe_step(
        model, batch, probe, weights=weights, loss=own_losses, precision=lambda: torch.autocast("cpu", torch.bfloat16)
    )
    found = [_gradient(parameter) for parameter in model.parameters()]
    probe.detach()
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        losses = own_losses(model(batch), batch)
    (weights * losses).mean().backward()  # powers of two are exact
    for parameter, gradient in zip(model.parameters(), found, strict=True):
        torch.testing.assert_close(gradient, _gradient(parameter), rtol=1e-2, atol=1e-4)


def test_the_loss_keeps_its_value_and_evaluation_its_outputs():
    model, batch = convnet().double(), images(B)
    expected = mean_loss(model(batch), batch).item()
    probe = StepProbe(None, weighted=True)
    probe.attach(model)
    assert mean_loss(model(probe.before_forward(batch, WEIGHTS)), batch).item() == expected
    probe_step(model, batch, probe, weights=WEIGHTS)
    with torch.no_grad():
        assert model(images(13)).shape == (13, 5)


# Refused


def test_weights_that_do_not_fit():
    model, batch = mlp().double(), images(B)
    probe = StepProbe(MaskGradient())
    probe.attach(model)
    with pytest.raises(ValueError, match=r"\(8,\).*weighted=False.*weighted=True"):
        probe.before_forward(batch, WEIGHTS)
    probe = StepProbe(None, weighted=True)
    probe.attach(model)
    for weights in (WEIGHTS[:3], WEIGHTS.view(B, 1), torch.tensor(1.0)):
        with pytest.raises(ValueError, match=r"Weights of shape .* 8 samples.*one weight per sample"):
            probe.before_forward(batch, weights)
    with pytest.raises(ValueError, match="weighted=False"):
        StepProbe(None).before_forward(batch, WEIGHTS)


def test_a_layer_that_keeps_no_sample_axis():
    class PerToken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(8, 5)

        def forward(self, batch: Any) -> Tensor:
            return self.head(batch[0].reshape(-1, 8)).view(len(batch[0]), -1, 5).mean(1)

    for name in (None, "head"):
        model = PerToken().double()
        probe = StepProbe(None, weighted=True, output_layer=name)
        probe.attach(model)
        with pytest.raises(ValueError, match=r"output layer's output .*first axis 192, but the microbatch has 8"):
            probe_step(model, images(B), probe, weights=WEIGHTS)


def test_a_layer_that_is_not_reached():
    model = nn.ModuleDict({"net": mlp(), "other": nn.Linear(3, 3)}).double()
    probe = StepProbe(None, weighted=True, output_layer="other")
    probe.attach(model)
    with pytest.raises(ValueError, match="did not reach the layer at site='output', 'other'"):
        probe_step(model["net"], images(B), probe, weights=WEIGHTS)
