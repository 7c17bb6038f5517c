"""Corpora: from what is published to shards, one module each.

``prepared`` is the folder that ``ted-stream prepare`` writes, its description and its atomic creation; ``images``,
``tars``, ``records`` and ``tokens`` are what preparing several corpora shares; ``forms`` and ``chats`` are of
instructions.
"""

from .cifar import prepare_cifar
from .digits import prepare_digits
from .glue import prepare_glue
from .imagenet import prepare_imagenet
from .instructions import prepare_instructions
from .prepared import Description, read_description

__all__ = [
    "Description",
    "prepare_cifar",
    "prepare_digits",
    "prepare_glue",
    "prepare_imagenet",
    "prepare_instructions",
    "read_description",
]
