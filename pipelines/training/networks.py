"""Networks of images by name, as plain modules."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

__all__ = ["IMAGE_MODELS", "convnet", "resnet9", "resnet18_cifar", "resnet50"]


def convnet(
    *, classes: int, in_channels: int, channels: Sequence[int] = (32, 64), batch_norm: bool = True
) -> nn.Module:
    """A plain ConvNet: 3×3 convolutions with ReLU, halving the image between stages, then average and linear.

    Args:
        classes: number of logits.
        in_channels: channels of the images.
        channels: width of each stage; one convolution each.
        batch_norm: normalise after each convolution (which then has no bias).
    """
    layers: list[nn.Module] = []
    for stage, width in enumerate(channels):
        if stage:
            layers.append(nn.MaxPool2d(2))
        layers.append(nn.Conv2d(in_channels, width, 3, padding=1, bias=not batch_norm))
        if batch_norm:
            layers.append(nn.BatchNorm2d(width))
        layers.append(nn.ReLU(inplace=True))
        in_channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(in_channels, classes))


def resnet18_cifar(*, classes: int, in_channels: int = 3) -> nn.Module:
    """ResNet-18 for 32×32 images: torchvision's, with a 3×3 stem of stride 1 and no max-pooling."""
    from torchvision.models import resnet18

    model = resnet18(num_classes=classes)
    model.conv1 = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
    return model


class _Residual(nn.Sequential):
    """Layers whose output is added to their input."""

    def forward(self, input: Tensor) -> Tensor:
        """The sum."""
        return input + super().forward(input)


def resnet9(*, classes: int, in_channels: int = 3) -> nn.Module:
    """ResNet-9 for 32×32 images, made for speed: eight convolutions, two of them in each of two residual blocks.

    (Page, "How to train your ResNet", 2018.)
    """

    def convolution(before: int, after: int, *others: nn.Module) -> list[nn.Module]:
        layers = [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
        return [*layers, *others]

    return nn.Sequential(
        *convolution(in_channels, 64),
        *convolution(64, 128, nn.MaxPool2d(2)),
        _Residual(*convolution(128, 128), *convolution(128, 128)),
        *convolution(128, 256, nn.MaxPool2d(2)),
        *convolution(256, 512, nn.MaxPool2d(2)),
        _Residual(*convolution(512, 512), *convolution(512, 512)),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Linear(512, classes),
    )


def resnet50(*, classes: int, in_channels: int = 3) -> nn.Module:
    """Torchvision's ResNet-50, randomly initialised."""
    from torchvision.models import resnet50 as build

    model = build(num_classes=classes)
    if in_channels != 3:
        model.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
    return model


IMAGE_MODELS: dict[str, Callable[..., nn.Module]] = {
    "convnet": convnet,
    "resnet18_cifar": resnet18_cifar,
    "resnet50": resnet50,
    "resnet9": resnet9,
}
