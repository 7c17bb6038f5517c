"""What a step must not suffer from being probed, whatever is measured."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from trainer import FAMILIES, images, logits_of, mean_loss, mlp, probe_step, tokens

from ted_stream.pruning.measures import MEASURES, Loss, MaskGradient, Measure, make_measure
from ted_stream.pruning.probe import StepProbe

B = 8
SETTINGS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in MEASURES if name != "mask_gradient"),
    *(
        ("mask_gradient", {"site": site, "norm": norm})
        for site in ("input", "features", "output")
        for norm in (None, 2)
    ),
]
each_measure = pytest.mark.parametrize("measure", [make_measure(name, **kw) for name, kw in SETTINGS], ids=repr)
each_kind = pytest.mark.parametrize("family", [FAMILIES[0], FAMILIES[-1]], ids=lambda family: family.name)


class NextToken(nn.Module):
    shift_labels = True

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.head = nn.Linear(6, 11)

    def forward(self, batch: Any) -> Tensor:
        return self.head(self.embedding(batch[0]))


class Images(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 11))

    def forward(self, batch: Any) -> Tensor:
        return self.layers(batch[0])


def _shifted_loss(logits: Tensor, batch: Any) -> Tensor:
    if logits.ndim == 2:
        return F.cross_entropy(logits, batch[1])
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), batch[1][:, 1:].flatten())


@pytest.mark.parametrize(
    ("given", "weighted"),
    [
        (False, True),
        (True, False),
        pytest.param(False, False, marks=pytest.mark.long),
        pytest.param(True, True, marks=pytest.mark.long),
    ],
)
@pytest.mark.parametrize("build", [Images, NextToken])
@each_measure
def test_no_step_waits_for_the_device(measure, build, given, weighted):
    """On the meta device, whose tensors hold no values: to look at one is an error."""
    with torch.device("meta"):
        model = build()
        inputs = torch.zeros(B, 6) if build is Images else torch.zeros(B, 5, dtype=torch.int64)
        targets = torch.zeros(inputs.shape[: 1 if build is Images else 2], dtype=torch.int64)
        weights = torch.ones(B) if weighted else None
    with pytest.raises(RuntimeError, match="meta"):
        targets.sum().item()  # as said
    probe = StepProbe(measure, weighted=weighted, loss=_shifted_loss if given else None)
    probe.attach(model)
    for _ in range(2):
        values = probe_step(model, (inputs, targets), probe, weights=weights, microbatch=5, loss=_shifted_loss)
        assert values.shape == (B,)
        assert values.is_meta


@each_measure
def test_evaluation_is_left_alone(measure):
    family = FAMILIES[0]
    model, batch = family.model().eval(), family.batch(13)
    with torch.no_grad():
        expected = model(batch)
    probe = StepProbe(measure)
    probe.attach(model)
    for _ in range(2):
        with torch.no_grad():
            assert torch.equal(model(batch), expected)
        probe_step(model, family.batch(B), probe)
    probe.detach()
    assert torch.equal(model(batch), expected)


def test_a_probe_of_nothing():
    probe = StepProbe(None)
    model, batch = mlp().double(), images(B)
    probe.attach(model)
    assert probe.before_forward(batch) is batch
    loss = mean_loss(model(batch), batch)
    probe.before_backward(batch, None, loss)
    loss.backward()
    assert probe.after_backward() is None
    probe.check()
    assert probe.layer is None
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@each_measure
def test_a_batch_that_is_tried_again_is_measured_once(measure):
    family = FAMILIES[0]
    model, batch = family.model(), family.batch(B)
    probe = StepProbe(measure)
    probe.attach(model)
    expected = probe_step(model, batch, probe, microbatch=2)
    probe.attach(model)
    model(probe.before_forward(batch))  # …and memory runs out, in the first batch
    torch.testing.assert_close(probe_step(model, batch, probe, microbatch=2), expected, rtol=1e-12, atol=0)
    outputs = model(probe.before_forward(batch))
    probe.before_backward(batch, outputs, mean_loss(outputs, batch))  # …in the backward pass
    torch.testing.assert_close(probe_step(model, batch, probe, microbatch=2), expected, rtol=1e-12, atol=0)


# Rows


@pytest.mark.parametrize("measure", [Loss(), MaskGradient(), None], ids=repr)
def test_other_numbers_of_rows(measure):
    model, batch = mlp().double(), images(B)
    probe = StepProbe(measure, weighted=True)
    probe.attach(model)
    outputs = model(probe.before_forward(batch))
    loss = mean_loss(outputs, batch)
    with pytest.raises(ValueError, match=r"had 8 rows .* the batch before the backward pass has 6,"):
        probe.before_backward((batch[0][:6], batch[1][:6]), outputs, loss)
    with pytest.raises(ValueError, match=r"had 8 rows .* the model's output has 16,"):
        probe.before_backward(batch, torch.cat([outputs, outputs]), loss)


def test_outputs_of_other_rows_beside_a_mask_at_the_input():
    """Where the mask sits in the batch, the outputs may be what they like (here, positions first)."""
    model = NextToken()
    batch = (tokens(B)["input_ids"] % 11, tokens(B)["labels"] % 11)

    def loss(z: Tensor, batch: Any) -> Tensor:
        return _shifted_loss(z.transpose(0, 1), batch)

    class Transposed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, batch: Any) -> Tensor:
            return self.inner(batch).transpose(0, 1)

    found = []
    for module, function in ((model, _shifted_loss), (Transposed(), loss)):
        probe = StepProbe(MaskGradient("input"), loss=function)
        probe.attach(module)
        probe.before_forward(batch)
        outputs = module(batch)
        probe.before_backward(batch, outputs, total := function(outputs, batch))
        total.backward()
        found.append(probe.after_backward())
    torch.testing.assert_close(found[0], found[1])


# Sharded and replicated


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("wrap", ["ddp", "fsdp2"])
@pytest.mark.parametrize("measure", [MaskGradient(), MaskGradient("output", 1), make_measure("last_layer_gradient")])
@each_kind
def test_data_parallel_models(family, measure: Measure, wrap):
    batch = family.batch(B)
    weights = torch.linspace(0.5, 2, B, dtype=torch.float64)
    plain = family.model()
    probe = StepProbe(measure, weighted=True)
    probe.attach(plain)
    expected = probe_step(plain, batch, probe, weights=weights, microbatch=3)
    model: Any = copy.deepcopy(family.model())
    if wrap == "ddp":
        model = nn.parallel.DistributedDataParallel(model)
    else:
        head = family.output_layer(model)
        if not family.is_language_model:  # tied weights must be sharded together
            fully_shard(head, mesh=init_device_mesh("cpu", (1,)))
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    sharded = StepProbe(measure, weighted=True)
    sharded.attach(model)
    assert torch.equal(probe_step(model, batch, sharded, weights=weights, microbatch=3), expected)
    assert sharded.layer == probe.layer
    for parameter, other in zip(model.parameters(), plain.parameters(), strict=True):
        gradient = parameter.grad if wrap == "ddp" else parameter.grad.full_tensor()
        torch.testing.assert_close(gradient, other.grad, rtol=1e-12, atol=1e-14)


def test_a_gradient_scaler_and_accumulated_gradients():
    """The factor is that of each microbatch's loss, however often it is multiplied."""
    family = FAMILIES[0]
    model, batch = family.model(torch.float32), family.batch(B, torch.float32)
    probe = StepProbe(MaskGradient(norm=2))
    probe.attach(model)
    expected = probe_step(model, batch, probe)
    for scale in (2.0**15, -3.0, 1e-4):
        probe.before_forward(batch)
        outputs = model(batch)
        probe.before_backward(batch, outputs, loss := mean_loss(outputs, batch))
        (loss * scale / 4).backward()
        found = probe.after_backward()
        assert found is not None
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    assert logits_of(outputs) is outputs
