"""Corpora: from what is published to shards, one module each.

``prepared`` is the folder that ``ted-stream prepare`` writes, its description and its atomic creation; ``images``,
``tars`` and ``processes`` are what preparing several corpora shares.
"""

from .cifar import prepare_cifar
from .digits import prepare_digits
from .imagenet import prepare_imagenet
from .instructions import prepare_instructions
from .prepared import Description, read_description

__all__ = [
    "Description",
    "prepare_cifar",
    "prepare_digits",
    "prepare_imagenet",
    "prepare_instructions",
    "read_description",
]
