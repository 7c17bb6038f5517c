import numpy as np
import pytest
import torch
from torch import nn

from ted_stream.pipelines.corpora.prepared import Description
from ted_stream.pipelines.training import settings as config
from ted_stream.pipelines.training.composer_host import composer_model
from ted_stream.pipelines.training.lars import LARS, lars_groups
from ted_stream.pipelines.training.metrics import LanguageCrossEntropy
from ted_stream.pipelines.training.networks import IMAGE_MODELS, convnet
from ted_stream.pipelines.training.optimizers import build_optimizer, build_scheduler
from ted_stream.pipelines.training.tasks import build_task

IMAGES = Description(kind="images", name="noise", samples={}, classes=tuple("abcdefg"), mean=(0,) * 3, std=(1,) * 3)
TEXT = Description(kind="instructions", name="numbers", samples={}, vocab_size=20, max_length=8)


@pytest.mark.quick("convnet", "resnet18_cifar", "resnet9")
@pytest.mark.parametrize("name", sorted(IMAGE_MODELS))
def test_image_models_learn_from_a_batch(name):
    torch.manual_seed(0)
    task = build_task(config.Model(name=name, label_smoothing=0.1, channels_last=True), IMAGES)
    batch = torch.randn(2, 3, 32, 32), torch.tensor([1, 6])
    logits = task.forward(task.network, batch)
    assert logits.shape == (2, 7)
    task.loss(logits, batch).backward()
    assert all(p.grad is not None for p in task.network.parameters())
    kernels = [p for p in task.network.parameters() if p.ndim == 4]
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in kernels)
    model = composer_model(task)
    torch.testing.assert_close(model.loss(model(batch), batch), task.loss(task.forward(task.network, batch), batch))
    names = [type(metric).__name__ for metric in task.metrics()]
    assert list(model.get_metrics(is_train=False)) == names == ["MulticlassAccuracy", "CrossEntropy"]


def test_the_cifar_stem_keeps_the_resolution():
    stem = IMAGE_MODELS["resnet18_cifar"](classes=10).conv1
    assert isinstance(stem, nn.Conv2d)
    assert (stem.kernel_size, stem.stride, stem.padding) == ((3, 3), (1, 1), (1, 1))


def test_convnet_options():
    plain = convnet(classes=3, in_channels=1, channels=[4, 8, 16], batch_norm=False)
    assert sum(isinstance(layer, nn.Conv2d) for layer in plain.modules()) == 3
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in plain.modules())
    assert plain(torch.zeros(1, 1, 8, 8)).shape == (1, 3)


@pytest.mark.long
def test_gpt_learns_from_targets_only():
    torch.manual_seed(0)
    task = build_task(config.Model(name="gpt", n_layer=1, n_head=2, n_embd=8), TEXT)
    batch = {
        "input_ids": torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0]]),
        "labels": torch.tensor([[-100, -100, 3, 4], [-100, 6, -100, -100]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]),
    }
    outputs = task.forward(task.network, batch)
    logits = torch.log_softmax(outputs.logits, -1)
    expected = -(logits[0, 1, 3] + logits[0, 2, 4] + logits[1, 0, 6]) / 3
    torch.testing.assert_close(task.loss(outputs, batch), expected)
    (metric,) = task.metrics()
    metric.update(*task.evaluate(batch))
    torch.testing.assert_close(metric.compute(), expected.double())
    assert set(composer_model(task).get_metrics(is_train=False)) == {"LanguageCrossEntropy"}


def test_cross_entropy_is_the_mean_over_targets():
    torch.manual_seed(0)
    logits, targets = torch.randn(7, 3, 5), torch.randint(5, (7, 3))
    targets[2:4, 1] = targets[6] = -100
    metric = LanguageCrossEntropy()
    for start, end in ((0, 5), (5, 6), (6, 7)):  # batches of unequal sizes, and one without targets
        metric.update(logits[start:end], targets[start:end])
    rows = torch.log_softmax(logits, -1)[targets >= 0]
    torch.testing.assert_close(metric.compute(), -rows[range(len(rows)), targets[targets >= 0]].double().mean())


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
    scheduler = build_scheduler(options, optimizer, length=20, steps=100)
    rates = []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates[0] == pytest.approx(5.2 / 25)
    assert max(rates) == pytest.approx(5.2)
    assert rates[-1] == pytest.approx(5.2 / 25 / 1e4)
    assert {group["momentum"] for group in optimizer.param_groups} == {0.9}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"name": "cosine", "warmup": "11ba"},
            r"warmup is 11ba, but the run ends after 10ba \(5ba an epoch\)",
        ),
        ({"name": "multistep", "milestones": ["10ba", "3ep"]}, r"scheduler.milestones\[1\] is 3ep, but the run ends"),
    ],
)
def test_a_schedule_does_not_go_beyond_the_run_in_another_unit(options, message):
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=3.0)
    with pytest.raises(config.ConfigError, match=message):
        build_scheduler(config.Scheduler(**options), optimizer, length=5, steps=10)
    build_scheduler(config.Scheduler(**{**options, "name": "onecycle"}), optimizer, length=5, steps=10)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"name": "constant"}, [1, 1, 1, 1, 1, 1]),
        ({"name": "constant", "warmup": "4ba"}, [0, 0.5, 1, 1, 1, 1]),
        ({"name": "linear"}, [1, 0.8, 0.6, 0.4, 0.2, 0]),
        ({"name": "linear", "warmup": "2ba", "final": 0.5}, [0, 1, 0.875, 0.75, 0.625, 0.5]),
        ({"name": "cosine"}, [(1 + np.cos(np.pi * at / 5)) / 2 for at in range(6)]),
        ({"name": "cosine", "warmup": "1ep", "final": 0.1}, [0, 0.4, 0.8, 0.55 + 0.45 * np.cos(np.pi / 5), None, 0.1]),
        ({"name": "multistep", "milestones": ["0.8dur", "2ba"]}, [1, 0.1, 0.1, 0.1, 0.01, 0.01]),
        ({"name": "multistep", "milestones": ["1ep"], "gamma": 0.5, "warmup": "4ba"}, [0, 0.5, 1, 0.5, 0.5, 0.5]),
    ],
)
def test_schedules_follow_their_formulas(options, expected):
    """At batches 0, 2, 4 … 10 of two epochs of five."""
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=3.0)
    scheduler = build_scheduler(config.Scheduler(**options), optimizer, length=5, steps=10)
    found = []
    for _ in range(11):
        found.append(optimizer.param_groups[0]["lr"] / 3)
        optimizer.step()
        scheduler.step()
    for rate, wanted in zip(found[::2], expected, strict=True):
        assert wanted is None or rate == pytest.approx(wanted)
