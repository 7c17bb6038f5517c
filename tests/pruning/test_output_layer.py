from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing
from torchvision.models import resnet18, squeezenet1_1
from trainer import (
    CLASSES,
    FAMILIES,
    VOCABULARY,
    CausalLM,
    Family,
    convnet,
    images,
    mean_loss,
    probe_step,
    tokens,
    transformer,
)
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    MixtralConfig,
    MixtralForCausalLM,
)

from ted_stream.pruning.measures import LastLayerGradient, MaskGradient, Measure
from ted_stream.pruning.output_layer import find_output_layer, layer_name, named_layer, shifts_labels
from ted_stream.pruning.probe import StepProbe

B = 6
each_site = pytest.mark.parametrize("site", ["features", "output"])


class HeadFirst(nn.Module):
    """What makes the logits is registered before what it is called on."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(16, CLASSES)
        self.body = nn.Linear(192, 16)

    def forward(self, batch: Any) -> Any:
        return self.head(self.body(batch[0].flatten(1)).relu())


class Auxiliary(HeadFirst):
    """A second head, whose outputs come along."""

    def __init__(self) -> None:
        super().__init__()
        self.auxiliary = nn.Linear(16, CLASSES)

    def forward(self, batch: Any) -> Any:
        features = self.body(batch[0].flatten(1)).relu()
        return {"logits": self.head(features), "auxiliary": self.auxiliary(features)}


class Convolutional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3)
        self.classifier = nn.Conv2d(6, CLASSES, 1)

    def forward(self, batch: Any) -> Tensor:
        return self.classifier(self.stem(batch[0]).relu()).mean((2, 3))


class InPlace(nn.Module):
    """Writes to what every layer puts out, the logits included."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(216, 16))
        self.head = nn.Linear(16, CLASSES)

    def forward(self, batch: Any) -> Tensor:
        return self.head(self.layers(batch[0]).relu_()).mul_(0.5)


class Capped(HeadFirst):
    """As Gemma caps its logits, in a wider type."""

    def forward(self, batch: Any) -> Tensor:
        return 5 * torch.tanh(super().forward(batch).float().double() / 5).view(B, 1, CLASSES)[:, 0]


def _step(model: Any, probe: StepProbe, batch: Any = None, loss: Callable[..., Tensor] = mean_loss) -> Tensor:
    return probe_step(model, images(B) if batch is None else batch, probe, loss=loss)


def _attached(model: nn.Module, measure: Measure, **options: Any) -> StepProbe:
    probe = StepProbe(measure, **options)
    probe.attach(model)
    return probe


def _main(outputs: Any, batch: Any) -> Tensor:
    return F.cross_entropy(outputs["logits"], batch[1])


def _both(outputs: Any, batch: Any) -> Tensor:
    return _main(outputs, batch) + 0.3 * F.cross_entropy(outputs["auxiliary"], batch[1])


# Found by the first loss


@each_site
@pytest.mark.parametrize(
    ("build", "name", "loss"),
    [
        (HeadFirst, "head", mean_loss),
        (Auxiliary, "head", _main),
        (Convolutional, "classifier", mean_loss),
        (Capped, "head", mean_loss),
        (convnet, "head", mean_loss),
        (transformer, "head", mean_loss),
    ],
)
def test_finds_the_layer_and_measures_there_from_the_first_batch_on(build, name, loss, site):
    torch.manual_seed(0)
    model: Any = build().double()
    batch = images(B) if build is not transformer else (images(B)[0].reshape(B, 24, 8), images(B)[1])
    found = _attached(model, MaskGradient(site))
    assert found.layer is None
    first = _step(model, found, batch, loss)
    assert found.layer == name
    second = _step(model, found, batch, loss)
    found.detach()
    named = _attached(model, MaskGradient(site), output_layer=name)  # as a resumed run does
    assert named.layer == name
    expected = _step(model, named, batch, loss)
    assert torch.equal(first, expected)
    assert torch.equal(second, expected)
    assert (expected > 0).all()


def test_the_first_batch_has_the_gradients_of_any_other():
    for build, loss in ((HeadFirst, mean_loss), (Auxiliary, _main), (InPlace, mean_loss)):
        torch.manual_seed(0)
        model: Any = build().double()
        _step(model, _attached(nn.Linear(1, 1), MaskGradient("input")), loss=loss)  # a probe of another model
        expected = [parameter.grad for parameter in model.parameters()]
        for measure in (MaskGradient("features"), LastLayerGradient()):
            probe = _attached(model, measure)
            _step(model, probe, loss=loss)
            for parameter, gradient in zip(model.parameters(), expected, strict=True):
                assert (parameter.grad is None) == (gradient is None)
                assert gradient is None or torch.equal(parameter.grad, gradient)
            probe.detach()


def test_only_the_hooks_of_the_layer_stay_and_none_after_detach():
    model = HeadFirst().double()
    probe = _attached(model, MaskGradient())

    def hooked() -> list[str]:
        return [name for name, m in model.named_modules() if m._forward_hooks or m._forward_pre_hooks]

    assert hooked() == ["head", "body"]
    _step(model, probe)
    assert hooked() == ["head"]
    other = HeadFirst().double()
    probe.attach(other)  # lets go of the first
    assert hooked() == []
    _step(other, probe)
    probe.detach()
    probe.detach()
    assert not other.head._forward_hooks
    assert not other.head._forward_pre_hooks
    assert probe.layer is None


def test_two_heads_in_the_loss_are_refused_until_one_is_named():
    model = Auxiliary().double()
    with pytest.raises(ValueError, match=r"several layers, 'head', 'auxiliary'.*output_layer='head'"):
        _step(model, _attached(model, MaskGradient()), loss=_both)
    for name in ("head", "auxiliary"):
        assert (_step(model, _attached(model, MaskGradient(), output_layer=name), loss=_both) > 0).all()


def test_an_ensemble_is_refused_until_one_is_named():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.models = nn.ModuleList([HeadFirst(), HeadFirst()])

        def forward(self, batch: Any) -> Tensor:
            return self.models[0](batch) + self.models[1](batch)

    model = Two().double()
    with pytest.raises(ValueError, match=r"several layers, 'models\.\d\.head', 'models\.\d\.head'"):
        _step(model, _attached(model, MaskGradient()))


def test_a_router_in_the_loss_is_refused_until_the_head_is_named():
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=61, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=2, output_router_logits=True,
    )  # fmt: skip
    model = MixtralForCausalLM(config)

    def step(probe: StepProbe) -> Tensor:
        return probe_step(lambda_model, tokens(B), probe, loss=lambda outputs, batch: outputs.loss)

    class Unpacked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lm = model

        def forward(self, batch: Any) -> Any:
            return self.lm(**batch)

    lambda_model = Unpacked()
    with pytest.raises(ValueError, match=r"several layers, 'lm\.lm_head', 'lm\.model\.layers\.0\..*gate'"):
        step(_attached(lambda_model, MaskGradient()))
    assert (step(_attached(lambda_model, MaskGradient(), output_layer="lm_head")) > 0).all()


def test_penalties_on_weights_are_no_second_head():
    model = HeadFirst().double()
    probe = _attached(model, MaskGradient())
    _step(model, probe, loss=lambda z, batch: mean_loss(z, batch) + sum(p.square().sum() for p in model.parameters()))
    assert probe.layer == "head"


@pytest.mark.parametrize("inside", [False, True])
def test_a_tied_output_embedding(inside):
    model = CausalLM()
    assert model.lm.lm_head.weight is model.lm.transformer.wte.weight

    class WithLoss(CausalLM):
        def forward(self, batch: dict[str, Tensor]) -> Any:
            return self.lm(**batch)

    model = WithLoss() if inside else model
    probe = _attached(model, MaskGradient())
    loss = (lambda outputs, batch: outputs.loss) if inside else mean_loss
    assert (_step(model, probe, tokens(B), loss) > 0).all()
    assert probe.layer == "lm.lm_head"


class Shared(nn.Embedding):
    """As MPT has it: what looks tokens up makes the logits too."""

    def forward(self, input: Tensor, unembed: bool = False) -> Tensor:
        return F.linear(input, self.weight) if unembed else super().forward(input)


class SharedLM(nn.Module):
    shift_labels = True

    def __init__(self, *, shared: bool) -> None:
        super().__init__()
        self.wte = Shared(VOCABULARY, 16)
        self.body = nn.Linear(16, 16)
        self.head = None if shared else nn.Linear(16, VOCABULARY, bias=False)

    def forward(self, batch: dict[str, Tensor]) -> Any:
        x = self.body(self.wte(batch["input_ids"])).tanh()
        return SimpleNamespace(logits=self.wte(x, True) if self.head is None else self.head(x))


@pytest.mark.parametrize("measure", [MaskGradient("features"), MaskGradient("output"), LastLayerGradient()])
@pytest.mark.parametrize("named", [False, True])
def test_an_embedding_that_makes_the_logits_too(measure, named):
    """It measures, and weighs, as a head of its own with the same numbers does."""
    torch.manual_seed(0)
    shared, apart = SharedLM(shared=True).double(), SharedLM(shared=False).double()
    apart.load_state_dict({**shared.state_dict(), "head.weight": shared.wte.weight})
    weights = torch.linspace(0.5, 2, B, dtype=torch.float64)
    found = []
    for model, name in ((shared, "wte"), (apart, "head")):
        probe = _attached(model, measure, weighted=True, output_layer=name if named else None)
        values = [probe_step(model, tokens(B), probe, weights=weights) for _ in range(2)]
        assert probe.layer == name
        assert torch.equal(*values)
        found.append(values[0])
    assert torch.equal(*found)
    assert (found[0] > 0).all()
    assert apart.head is not None
    gradients: list[Any] = [module.weight.grad for module in (shared.wte, apart.wte, apart.head)]
    torch.testing.assert_close(gradients[0], gradients[1] + gradients[2])
    torch.testing.assert_close(shared.body.weight.grad, apart.body.weight.grad)


def test_a_frozen_body_stays_without_a_graph():
    """A linear probe: masks on frozen layers would make the first batch keep their activations."""
    model = HeadFirst().double()
    model.body.requires_grad_(False)
    seen: list[bool] = []
    model.body.register_forward_hook(lambda module, args, output: seen.append(output.requires_grad))
    probe = _attached(model, MaskGradient())
    assert (_step(model, probe) > 0).all()
    assert seen == [False]
    assert probe.layer == "head"


def test_an_adapter_around_the_head_is_one_layer():
    class Adapted(nn.Module):
        """As peft wraps a linear layer."""

        def __init__(self, base: nn.Linear) -> None:
            super().__init__()
            self.base_layer = base.requires_grad_(False)
            self.down, self.up = nn.Linear(16, 2, bias=False), nn.Linear(2, CLASSES, bias=False)

        @property
        def weight(self) -> Tensor:
            return self.base_layer.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.base_layer(x) + self.up(self.down(x))

    model: Any = HeadFirst()
    model.head = Adapted(model.head)
    probe = _attached(model.double(), MaskGradient())
    assert (_step(model, probe) > 0).all()
    assert probe.layer == "head"


def test_layers_of_known_models():
    def loss(outputs: Any, batch: Any) -> Tensor:
        return F.cross_entropy(outputs, batch[1])

    class Unpacked(nn.Module):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def forward(self, batch: Any) -> Any:
            return self.net(batch[0])

    batch = (torch.randn(2, 3, 32, 32), torch.arange(2))
    for net, name in ((resnet18(num_classes=7), "net.fc"), (squeezenet1_1(num_classes=7), "net.classifier.1")):
        probe = _attached(model := Unpacked(net), MaskGradient(), weighted=True)
        probe_step(model, batch, probe, loss=loss, weights=torch.ones(2))
        assert probe.layer == name
        probe.detach()


def test_logits_that_are_written_to():
    torch.manual_seed(0)
    model = InPlace().double()
    with pytest.raises(ValueError, match=r"written to in place.*output_layer="):
        _step(model, _attached(model, MaskGradient("output")))
    # ∂ℓ/∂δ does not ask by what the output is multiplied afterwards.
    probe = _attached(model, MaskGradient("output"), output_layer="head", weighted=True)
    measured = probe_step(model, images(B), probe, weights=torch.full((B,), 2.0, dtype=torch.float64))
    z = model(images(B)).detach()
    p, y = z.softmax(1), F.one_hot(images(B)[1], CLASSES)
    torch.testing.assert_close(measured, (z * (p - y)).sum(1).abs())


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
@each_site
def test_under_activation_checkpointing(family, site):
    batch = family.batch(B)
    plain, model = family.model(), family.model()
    if family.is_language_model:
        model.lm.config.use_cache = False  # a recomputed block would append to the cache once more
    expected = probe_step(plain, batch, _attached(plain, MaskGradient(site)))
    blocks = (nn.Sequential, nn.TransformerEncoderLayer)
    apply_activation_checkpointing(model, check_fn=lambda m: isinstance(m, blocks) or type(m).__name__ == "GPT2Block")
    probe = _attached(model, MaskGradient(site))
    for _ in range(2):
        assert torch.equal(probe_step(model, batch, probe), expected)
    for parameter, other in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(parameter.grad, other.grad)
    assert probe.layer == ("lm.lm_head" if family.is_language_model else "head")


# Compiled


def _compiled(model: nn.Module) -> Any:
    torch.compiler.reset()
    return torch.compile(model, backend="aot_eager")


COMPILED: list[tuple[Family, Measure]] = [
    (FAMILIES[0], MaskGradient("output", 1)),
    (FAMILIES[2], LastLayerGradient()),
]


@pytest.mark.long
@pytest.mark.parametrize(("family", "measure"), COMPILED, ids=lambda value: getattr(value, "name", repr(value)))
def test_a_compiled_model_measures_as_a_plain_one(family, measure):
    batch = family.batch(B)
    plain, model = family.model(), _compiled(family.model())
    expected = probe_step(plain, batch, _attached(plain, measure))
    probe = _attached(model, measure)
    for _ in range(2):
        torch.testing.assert_close(probe_step(model, batch, probe), expected, rtol=1e-9, atol=1e-13)
    assert probe.layer == ("lm.lm_head" if family.is_language_model else "head")


@pytest.mark.long
def test_another_probe_of_a_compiled_model():
    """Compiled code does not notice that hooks have changed, and would go on with those of before."""
    family = FAMILIES[2]
    batch, plain, model = family.batch(B), family.model(), _compiled(family.model())
    expected = probe_step(plain, batch, _attached(plain, MaskGradient()))
    with torch.no_grad():
        model(batch)  # compiled without hooks
    probe = _attached(model, MaskGradient())
    for other in (probe, StepProbe(MaskGradient(), output_layer="head")):
        other.attach(model)
        for _ in range(2):
            torch.testing.assert_close(probe_step(model, batch, other), expected, rtol=1e-9, atol=1e-13)
    probe.detach()


@pytest.mark.long
def test_a_compiled_model_whose_layer_cannot_be_told():
    model = _compiled(HeadFirst().double())
    with pytest.raises(ValueError, match=r"compiled model .*'body'.*\(16, 192\).*\(6, 5\).*output_layer="):
        _step(model, _attached(model, MaskGradient()))
    model = _compiled(HeadFirst().double())
    probe = _attached(model, MaskGradient(), output_layer="head")
    assert (_step(model, probe) > 0).all()
    assert probe.layer == "head"  # as without the compiler


@pytest.mark.long
def test_a_compiled_block_beside_a_plain_head():
    torch.compiler.reset()
    torch.manual_seed(0)
    model, plain = HeadFirst().double(), HeadFirst().double()
    plain.load_state_dict(model.state_dict())
    model.head.compile(backend="aot_eager")
    expected = _step(plain, _attached(plain, MaskGradient()))
    # The compiled head hides, and the walk comes to the body, or to no layer where torch compiles a lone nn.Linear too
    # (2.15 does, 2.7 does not); what cannot be told is not guessed.
    with pytest.raises(ValueError, match=r"compiled model .*'body'.*output_layer=|that can be seen.*output_layer="):
        _step(model, _attached(model, MaskGradient()))
    probe = _attached(model, MaskGradient(), output_layer="head")
    torch.testing.assert_close(_step(model, probe), expected)
    body = HeadFirst().double()
    body.load_state_dict(plain.state_dict())
    body.body.compile(backend="aot_eager")
    probe = _attached(body, MaskGradient(), output_layer="head")
    torch.testing.assert_close(_step(body, probe), expected)


# Refused


def test_a_layer_that_the_forward_pass_does_not_reach():
    class Unused(HeadFirst):
        def __init__(self) -> None:
            super().__init__()
            self.auxiliary = nn.Linear(192, CLASSES)

    for site in ("features", "output"):
        model = Unused().double()
        with pytest.raises(ValueError, match=rf"did not reach.*{site}.*'auxiliary'.*output_layer="):
            _step(model, _attached(model, MaskGradient(site), output_layer="auxiliary"))


@each_site
def test_a_loss_that_does_not_depend_on_the_named_layer(site):
    model = Auxiliary().double()
    with pytest.raises(ValueError, match="loss does not depend on the output of the layer 'auxiliary'"):
        _step(model, _attached(model, MaskGradient(site), output_layer="auxiliary"), loss=_main)


def test_a_loss_beside_the_logits():
    model = Auxiliary().double()

    def loss(outputs: Any, batch: Any) -> Tensor:
        return F.cross_entropy(outputs["auxiliary"], batch[1])

    with pytest.raises(ValueError, match="several layers, 'head', 'auxiliary'"):
        _step(model, _attached(model, MaskGradient()), loss=loss)


def test_a_loss_without_layers():
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(CLASSES, dtype=torch.float64))

        def forward(self, batch: Any) -> Tensor:
            return batch[0].flatten(1)[:, :CLASSES] * self.scale

    model = Scaled()
    with pytest.raises(ValueError, match=r"hangs on no linear layer or convolution of Scaled.*site='input'"):
        _step(model, _attached(model, MaskGradient()))
    assert (_step(model, _attached(model, MaskGradient("input"))) > 0).all()
    with pytest.raises(ValueError, match="requires no gradient"):
        _step(model, _attached(model, MaskGradient("input")), loss=lambda z, batch: mean_loss(z.detach(), batch))


def test_a_loss_that_does_not_depend_on_the_input():
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, CLASSES)).double()
    probe = _attached(model, MaskGradient("input"))
    batch = probe.before_forward(images(B))
    outputs = model(images(B)[0])  # not what was given
    probe.before_backward(batch, outputs, loss := mean_loss(outputs, batch))
    loss.backward()
    with pytest.raises(ValueError, match="did not come to the batch's first tensor"):
        probe.after_backward()


def test_features_by_keyword():
    class ByKeyword(HeadFirst):
        def forward(self, batch: Any) -> Tensor:
            return self.head(input=self.body(batch[0].flatten(1)))

    model = ByKeyword().double()
    for name in (None, "head"):
        with pytest.raises(ValueError, match="'features', is called with keyword arguments alone"):
            _step(model, _attached(model, MaskGradient(), output_layer=name))
        assert (_step(model, _attached(model, MaskGradient("output"), output_layer=name)) > 0).all()


# Names


def test_an_output_layer_of_that_name():
    model = nn.Sequential(convnet(), convnet())
    with pytest.raises(ValueError, match="output_layer is 'fc', which names 0 modules") as caught:
        StepProbe(MaskGradient(), output_layer="fc").attach(model)
    assert "1.head" in str(caught.value)  # an example that exists
    with pytest.raises(ValueError, match="output_layer is 'head', which names 2 modules"):
        StepProbe(MaskGradient(), output_layer="head").attach(model)
    assert find_output_layer(model, "0.head") is model[0].head
    with pytest.raises(ValueError, match="output_layer is 'ead'"):  # whole components only
        find_output_layer(model, "ead")


def test_a_name_that_another_one_ends_in():
    model = nn.ModuleDict({"head": nn.Linear(2, 2), "inner": nn.ModuleDict({"head": nn.Linear(2, 2)})})
    assert named_layer(model, "head") is model["head"]


def test_names_leave_wrappers_out():
    model: Any = convnet()
    expected = layer_name(model, model.head)
    apply_activation_checkpointing(model, check_fn=lambda module: isinstance(module, nn.Linear | nn.Sequential))
    compiled: Any = torch.compile(model)
    assert layer_name(compiled, model.head) == expected == "head"
    assert named_layer(compiled, "head") is model.head
    assert layer_name(model, model.body[0]) == "body.0"


# The likely layer, where no graph can be walked


def test_likely_output_layers():
    model = resnet18(num_classes=7)
    assert find_output_layer(model) is model.fc
    assert find_output_layer(nn.Sequential(model)) is model.fc
    with pytest.raises(ValueError, match=r"Convolutional has no nn\.Linear") as caught:
        find_output_layer(Convolutional())
    assert "output_layer=" in str(caught.value)
    assert "site='input'" in str(caught.value)


def test_output_layer_of_a_language_model():
    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=8, n_layer=1, n_head=2, n_positions=8))
    assert find_output_layer(model) is model.lm_head
    assert find_output_layer(nn.ModuleDict({"model": model})) is model.lm_head


def test_output_layer_of_bert():
    config = BertConfig(
        vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_labels=3
    )
    model = BertForSequenceClassification(config)
    assert find_output_layer(model) is model.classifier
    wrapped = nn.ModuleDict({"model": model})
    assert find_output_layer(wrapped) is model.classifier
    assert find_output_layer(wrapped, "classifier") is model.classifier
    assert find_output_layer(wrapped, "model.classifier") is model.classifier
    assert find_output_layer(wrapped, "pooler.dense") is model.bert.get_submodule("pooler.dense")


def test_whether_labels_are_shifted():
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=8, n_layer=1, n_head=2, n_positions=8))
    assert shifts_labels(gpt2)
    assert shifts_labels(nn.Sequential(gpt2))
    assert shifts_labels(CausalLM())
    told: Any = gpt2
    told.shift_labels = False
    assert not shifts_labels(told)
    assert not shifts_labels(convnet())


# Parameters that no layer holds


class Functional(nn.Module):
    """Makes the logits with parameters of its own, and scales them."""

    def __init__(self, *, scale: bool = False, matrix: bool = False) -> None:
        super().__init__()
        self.body = nn.Linear(192, 16)
        self.head = nn.Linear(16, CLASSES)
        self.scale = nn.Parameter(torch.ones(())) if scale else None
        self.matrix = nn.Parameter(torch.randn(CLASSES, CLASSES)) if matrix else None

    def forward(self, batch: Any) -> Tensor:
        logits = self.head(self.body(batch[0].flatten(1)).relu())
        if self.scale is not None:
            logits = logits * self.scale
        return logits if self.matrix is None else logits @ self.matrix


def test_logits_that_no_layer_makes():
    torch.manual_seed(0)
    model = Functional(matrix=True).double()
    for site in ("features", "output"):
        with pytest.raises(ValueError, match=r"'matrix' \(5, 5\)\. The layer before them, 'head', is not the output"):
            _step(model, _attached(model, MaskGradient(site)))
        assert (_step(model, _attached(model, MaskGradient(site), output_layer="head")) > 0).all()
    assert (_step(model, _attached(model, MaskGradient("input"))) > 0).all()


def test_a_scale_behind_the_layer():
    torch.manual_seed(0)
    model = Functional(scale=True).double()
    assert (_step(model, _attached(model, MaskGradient())) > 0).all()
    with pytest.raises(ValueError, match=r"logits are made of .* beside.*'head': 'scale' \(\).*ErrorNorm"):
        _step(model, _attached(model, LastLayerGradient()))
    for name in (None, "head"):
        with pytest.raises(ValueError, match=r"beside the output of the layer 'head': 'scale' \(\).*TED or Random"):
            _step(model, _attached(model, MaskGradient(), weighted=True, output_layer=name))


@pytest.mark.parametrize("rows", [1, B])
def test_samples_that_are_nan_are_no_other_layer(rows):
    torch.manual_seed(0)
    pixels, targets = images(B)
    pixels[:rows] = torch.nan
    model = Functional().double()
    probe = _attached(model, LastLayerGradient())
    measured = _step(model, probe, (pixels, targets))
    probe.check()
    assert measured.isfinite().tolist() == [False] * rows + [True] * (B - rows)
    capped = Capped().double()
    probe = _attached(capped, LastLayerGradient())
    _step(capped, probe, (pixels, targets)) if rows < B else _step(capped, probe)
    with pytest.raises(ValueError, match="The logits are not W f"):
        probe.check()


def test_a_scale_within_the_loss():
    torch.manual_seed(0)
    model = HeadFirst().double()
    scale = nn.Parameter(torch.ones((), dtype=torch.float64))

    def loss(z: Tensor, batch: Any) -> Tensor:
        return mean_loss(z * scale, batch)

    assert (_step(model, _attached(model, MaskGradient()), loss=loss) > 0).all()
    with pytest.raises(ValueError, match=r"'one outside of the model' \(\)"):
        _step(model, _attached(model, MaskGradient(), weighted=True), loss=loss)


def test_weights_go_with_one_layer_alone():
    """Naming one of several would leave the others unweighted, and so would naming a hidden one."""
    model = Auxiliary().double()
    for name in (None, "head", "auxiliary"):
        with pytest.raises(ValueError, match=r"several layers, '\w+', '\w+'.*weighs no samples, such as TED"):
            _step(model, _attached(model, MaskGradient(), weighted=True, output_layer=name), loss=_both)
    _step(model, _attached(model, MaskGradient(), weighted=True, output_layer="head"), loss=_main)
    with pytest.raises(ValueError, match=r"output of the layer 'body' but through 'head', so it cannot be .* weighed"):
        _step(model, _attached(model, MaskGradient(), weighted=True, output_layer="body"), loss=_main)


def test_penalties_are_not_weighed():
    """A term that no sample has a part in is what it was; its gradient is not that of samples."""
    model = HeadFirst().double()

    def loss(z: Tensor, batch: Any) -> Tensor:
        parts = [p.square().sum() for p in model.parameters()]
        return mean_loss(z, batch) - torch.stack([0.1 * part for part in parts]).sum() + sum(parts)

    probe = _attached(model, MaskGradient(), weighted=True)
    _step(model, probe, loss=loss)
    assert probe.layer == "head"


def test_a_head_that_joins_the_loss_later():
    model = Auxiliary().double()
    probe = _attached(model, MaskGradient(), weighted=True)
    for _ in range(2):
        _step(model, probe, loss=_main)
        probe.look_again()
    with pytest.raises(ValueError, match=r"several layers, '\w+', '\w+'"):
        _step(model, probe, loss=_both)
    probe.detach()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


class Looped(nn.Module):
    """Takes its own output, as a tied embedding of a language model does; or is shown two views."""

    def __init__(self, *, in_a_row: bool) -> None:
        super().__init__()
        self.stem = nn.Linear(192, CLASSES)
        self.head = nn.Linear(CLASSES, CLASSES)
        self.in_a_row = in_a_row

    def forward(self, batch: Any) -> Tensor:
        x = self.stem(batch[0].flatten(1))
        return self.head(self.head(x).relu()) if self.in_a_row else self.head(x) + self.head(x.relu())


def test_a_layer_that_is_called_more_than_once():
    torch.manual_seed(0)
    model = Looped(in_a_row=True).double()
    for options in ({}, {"weighted": True}, {"output_layer": "head"}):
        with pytest.raises(ValueError, match=r"'head' is called 2 times.*one call takes what another gave"):
            _step(model, _attached(model, MaskGradient(), **options))
    views = Looped(in_a_row=False).double()
    assert (_step(views, _attached(views, MaskGradient(), weighted=True)) > 0).all()
    with pytest.raises(ValueError, match=r"'head' is called 2 times.*no one feature vector.*ErrorNorm"):
        _step(views, _attached(views, LastLayerGradient()))


def test_logits_out_of_a_reentrant_checkpoint():
    class Checkpointed(HeadFirst):
        def forward(self, batch: Any) -> Tensor:
            x = self.body(batch[0].flatten(1)).relu()
            logits = torch.utils.checkpoint.checkpoint(self.head, x, use_reentrant=True)
            assert isinstance(logits, Tensor)
            return logits

    model = Checkpointed().double()
    with pytest.raises(ValueError, match=r"reentrant activation checkpoint.*use_reentrant=False"):
        _step(model, _attached(model, MaskGradient()))


def test_a_call_whose_graph_is_gone_is_no_other():
    """As where labels are guessed in the forward pass."""

    class Guessing(HeadFirst):
        def forward(self, batch: Any) -> Tensor:
            super().forward(batch).argmax(1)
            return super().forward(batch)

    model = Guessing().double()
    for options in ({}, {"weighted": True}):
        assert (_step(model, _attached(model, MaskGradient("output"), **options)) > 0).all()


def test_a_layer_whose_rows_are_no_samples_is_refused_before_there_are_weights():
    class Views(HeadFirst):
        def forward(self, batch: Any) -> Tensor:
            x = self.body(torch.cat([batch[0], batch[0]]).flatten(1)).relu()
            return self.head(x).view(2, B, CLASSES).mean(0)

    model = Views().double()
    with pytest.raises(ValueError, match=r"output layer's output .*first axis 12, but the microbatch has 6"):
        _step(model, _attached(model, MaskGradient("input"), weighted=True))


@pytest.mark.parametrize("after", [lambda z: z * 2, torch.tanh, lambda z: F.layer_norm(z, (CLASSES,))])
def test_logits_that_the_last_layer_does_not_make_alone(after):
    class Changed(HeadFirst):
        def forward(self, batch: Any) -> Tensor:
            return after(super().forward(batch))

    model = Changed().double()
    probe = _attached(model, LastLayerGradient())
    _step(model, probe)
    with pytest.raises(ValueError, match=r"not W f \+ b .*ErrorNorm"):
        probe.check()
    plain = HeadFirst().double()
    probe = _attached(plain, LastLayerGradient())
    _step(plain, probe)
    probe.check()
