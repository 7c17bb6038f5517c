"""What happens to images: decoding where they are read, augmentation and normalisation on the device.

Pixels travel as uint8 (a quarter of the bytes). Images of one shape are augmented on the device, where one gather
does a whole batch; JPEGs of any shape where they are decoded, one by one.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad
from torchvision.transforms import v2

__all__ = ["DecodeJpeg", "ImageTransform", "random_crop_flip"]

SHORT_SIDE = 256 / 224  # of a test image before its centre is cropped, relative to the crop's side


class DecodeJpeg:
    """The bytes of a JPEG or PNG file to pixels of one shape, as ImageNet's images are trained and tested on.

    Randomness comes from torch's global generator of the process that decodes, which is seeded for every sample.
    """

    def __init__(self, size: int, *, augment: bool, color_jitter: float = 0) -> None:
        """Choose the part of an image that is kept.

        Args:
            size: side of the square result.
            augment: a random part of the image, random flip (He et al. 2016); else the centre of the image, of
                which the short side was scaled to 256/224 of ``size``.
            color_jitter: largest share of the change of brightness, contrast and saturation of an augmented image.

        Raises:
            ValueError: colours are to change without augmentation.
        """
        if color_jitter and not augment:
            raise ValueError(f"color_jitter is {color_jitter}, but colours change with augment=True alone.")
        if augment:
            parts = [v2.RandomResizedCrop(size), v2.RandomHorizontalFlip()]
            if color_jitter:
                parts.append(v2.ColorJitter(color_jitter, color_jitter, color_jitter))
        else:
            parts = [v2.Resize(round(SHORT_SIDE * size)), v2.CenterCrop(size)]
        self.transform = v2.Compose(parts)

    def __call__(self, content: bytes) -> Tensor:
        """Decode an image of any mode (grey, CMYK, palette).

        Returns:
            (size, size, 3) uint8, RGB.

        Raises:
            OSError: it cannot be decoded.
        """
        with Image.open(io.BytesIO(content)) as image:
            return torch.from_numpy(np.array(self.transform(image.convert("RGB"))))


def random_crop_flip(images: Tensor, padding: int) -> Tensor:
    """Crop each image at random from its black-padded self and flip half of them.

    Randomness comes from torch's global generator of the images' device, which Composer seeds, saves and
    restores.

    Args:
        images: (B, H, W, C).
        padding: pixels added on every side before cropping back to H × W.

    Returns:
        (B, H, W, C) of the same dtype.
    """
    count, height, width, _ = images.shape
    device = images.device
    padded = pad(images, (0, 0, padding, padding, padding, padding))
    top, left = torch.randint(2 * padding + 1, (2, count, 1), device=device)
    flip = torch.randint(2, (count, 1), device=device, dtype=torch.bool)
    rows = top + torch.arange(height, device=device)  # (B, H)
    columns = torch.arange(width, device=device)
    columns = left + torch.where(flip, width - 1 - columns, columns)  # (B, W)
    sample = torch.arange(count, device=device)
    return padded[sample[:, None, None], rows[:, :, None], columns[:, None, :]]


class ImageTransform:
    """A DataSpec ``microbatch_transforms`` (these run on the device): uint8 images of a batch to normalised floats.

    Only the batch's first element changes, so that labels and whatever follows them (sample ids) pass through.
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        padding: int | None = None,
        channels_last: bool = False,
    ) -> None:
        """Set the constants.

        Args:
            mean: of each channel, in raw pixel units.
            std: of each channel, in raw pixel units.
            padding: of `random_crop_flip`; None does not augment.
            channels_last: leave the pixels of a channel interleaved in memory.
        """
        if min(std) <= 0:
            raise ValueError(f"std is {list(std)}; a channel without variation cannot be normalised.")
        self.mean = torch.tensor(mean, dtype=torch.float32)
        self.scale = 1 / torch.tensor(std, dtype=torch.float32)
        self.padding = padding
        self.channels_last = channels_last

    def __call__(self, batch: Sequence[Any]) -> list[Any]:
        """Transform a batch whose first element is (B, H, W) or (B, H, W, C) uint8.

        Returns:
            The same batch with (B, C, H, W) float32 in front.
        """
        images, *others = batch
        if self.mean.device != images.device:
            self.mean, self.scale = self.mean.to(images.device), self.scale.to(images.device)
        if images.ndim == 3:
            images = images[..., None]
        if self.padding is not None:
            images = random_crop_flip(images, self.padding)
        images = ((images.float() - self.mean) * self.scale).permute(0, 3, 1, 2)
        return [images if self.channels_last else images.contiguous(), *others]
