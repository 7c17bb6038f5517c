"""Image networks by name, as plain modules."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

__all__ = ["IMAGE_MODELS", "convnet", "resnet18_cifar", "resnet50"]


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
}
