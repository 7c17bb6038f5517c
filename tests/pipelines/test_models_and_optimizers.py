import numpy as np
import pytest
import torch
from torch import nn

from ted_stream.pipelines.training import settings as config
from ted_stream.pipelines.training.lars import LARS, lars_groups
from ted_stream.pipelines.training.models import classifier, gpt
from ted_stream.pipelines.training.networks import IMAGE_MODELS, convnet
from ted_stream.pipelines.training.optimizers import build_optimizer, build_scheduler


@pytest.mark.parametrize("name", sorted(IMAGE_MODELS))
def test_image_models_learn_from_a_batch(name):
    torch.manual_seed(0)
    model = classifier(name, classes=7, in_channels=3, label_smoothing=0.1, channels_last=True)
    batch = torch.randn(2, 3, 32, 32), torch.tensor([1, 6])
    logits = model(batch)
    assert logits.shape == (2, 7)
    loss = model.loss(logits, batch)
    assert isinstance(loss, torch.Tensor)
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    assert set(model.get_metrics(is_train=False)) == {"MulticlassAccuracy", "CrossEntropy"}


def test_the_cifar_stem_keeps_the_resolution():
    stem = IMAGE_MODELS["resnet18_cifar"](classes=10).conv1
    assert isinstance(stem, nn.Conv2d)
    assert (stem.kernel_size, stem.stride, stem.padding) == ((3, 3), (1, 1), (1, 1))


def test_convnet_options():
    plain = convnet(classes=3, in_channels=1, channels=[4, 8, 16], batch_norm=False)
    assert sum(isinstance(layer, nn.Conv2d) for layer in plain.modules()) == 3
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in plain.modules())
    assert plain(torch.zeros(1, 1, 8, 8)).shape == (1, 3)


def test_gpt_learns_from_targets_only():
    torch.manual_seed(0)
    model = gpt(vocab_size=20, max_length=8, n_layer=1, n_head=2, n_embd=8)
    batch = {
        "input_ids": torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0]]),
        "labels": torch.tensor([[-100, -100, 3, 4], [-100, 6, -100, -100]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]),
        "sample_id": torch.tensor([7, 8]),
    }
    outputs = model(batch)
    logits = torch.log_softmax(outputs.logits, -1)
    expected = -(logits[0, 1, 3] + logits[0, 2, 4] + logits[1, 0, 6]) / 3
    torch.testing.assert_close(model.loss(outputs, batch), expected)
    assert set(model.get_metrics(is_train=False)) == {"LanguageCrossEntropy"}


def test_lars_follows_the_published_rule():
    """Against algorithm 1 of You et al. in numpy, over several steps and a changing learning rate."""
    torch.manual_seed(0)
    weights = [torch.randn(3, 4).double(), torch.zeros(5, 2).double(), torch.randn(2, 2).double()]
    parameters = [nn.Parameter(w.clone()) for w in weights]
    momentum, decay, trust = 0.9, 5e-4, 1e-3
    optimizer = LARS(parameters, 1.0, momentum=momentum, weight_decay=decay, trust_coefficient=trust)
    expected = [w.numpy().copy() for w in weights]
    velocity = [np.zeros_like(w) for w in expected]
    for step in range(5):
        lr = 5.2 / (step + 1)
        optimizer.param_groups[0]["lr"] = lr
        for index, parameter in enumerate(parameters):
            gradient = torch.randn(parameter.shape, dtype=torch.float64)
            if index == 2 and step == 1:
                gradient.zero_()
            parameter.grad = gradient
            w, g = expected[index], gradient.numpy()
            w_norm, g_norm = np.linalg.norm(w), np.linalg.norm(g)
            local = trust * w_norm / (g_norm + decay * w_norm) if w_norm > 0 and g_norm > 0 else 1.0
            velocity[index] = momentum * velocity[index] + lr * local * (g + decay * w)
            expected[index] = w - velocity[index]
        optimizer.step()
        for parameter, want in zip(parameters, expected, strict=True):
            np.testing.assert_allclose(parameter.detach().numpy(), want, rtol=1e-12, atol=1e-15)


def test_lars_without_adaptation_is_sgd():
    torch.manual_seed(0)
    ours, theirs = nn.Linear(4, 3), nn.Linear(4, 3)
    theirs.load_state_dict(ours.state_dict())
    a = LARS(ours.parameters(), 0.1, momentum=0.9, weight_decay=0.01, adapt=False)
    b = torch.optim.SGD(theirs.parameters(), 0.1, momentum=0.9, weight_decay=0.01)
    for _ in range(4):
        x = torch.randn(8, 4)
        for model, optimizer in ((ours, a), (theirs, b)):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(ours.weight, theirs.weight)
    torch.testing.assert_close(ours.bias, theirs.bias)


def test_lars_leaves_vectors_out():
    groups = lars_groups(convnet(classes=3, in_channels=1, channels=[4]))
    assert [p.ndim for p in groups[0]["params"]] == [4, 2]
    assert {p.ndim for p in groups[1]["params"]} == {1}
    assert (groups[1]["adapt"], groups[1]["weight_decay"]) == (False, 0.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": 0.0}, "lr is 0.0"),
        ({"momentum": 1.0}, "momentum is 1.0"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0"),
        ({"trust_coefficient": 0.0}, "trust_coefficient is 0.0"),
    ],
)
def test_lars_refuses_values_out_of_range(changes, message):
    with pytest.raises(ValueError, match=message):
        LARS([nn.Parameter(torch.ones(2))], **{"lr": 0.1, **changes})


def test_optimizers_by_name():
    model = convnet(classes=3, in_channels=1, channels=[4])
    sgd = build_optimizer(config.Optimizer(name="sgd", lr=0.1, momentum=0.8, betas=[0.9, 0.9]), model)
    assert isinstance(sgd, torch.optim.SGD)
    assert sgd.param_groups[0]["momentum"] == 0.8
    adamw = build_optimizer(config.Optimizer(name="adamw", lr=0.1, weight_decay=0.3, betas=[0.8, 0.9]), model)
    assert [group["weight_decay"] for group in adamw.param_groups] == [0.3, 0.0]
    lars = build_optimizer(config.Optimizer(name="lars", lr=0.1, trust_coefficient=0.5), model)
    assert lars.param_groups[0]["trust_coefficient"] == 0.5


def test_onecycle_reaches_its_peak_and_keeps_the_momentum():
    model = nn.Linear(2, 2)
    optimizer = build_optimizer(config.Optimizer(name="lars", lr=0.2, momentum=0.9), model)
    options = config.Scheduler(name="onecycle", max_lr=5.2, pct_start=0.3, div_factor=25, final_div_factor=1e4)
    scheduler = build_scheduler(options, optimizer, steps=100)
    rates = []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()  # pyright: ignore[reportAttributeAccessIssue]
    assert rates[0] == pytest.approx(5.2 / 25)
    assert max(rates) == pytest.approx(5.2)
    assert rates[-1] == pytest.approx(5.2 / 25 / 1e4)
    assert {group["momentum"] for group in optimizer.param_groups} == {0.9}
