"""Data pruning in Hugging Face's Trainer, and in those that are made of it."""

from ted_stream.extras import optional_imports

with optional_imports():
    import accelerate  # without it transformers fails, and says of something else
    import transformers

if not (4, 57) <= tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 0):
    raise ImportError(
        f"transformers is {transformers.__version__}, but PruningMixin knows the Trainer of 4.57 and of later ones "
        'below 5. Install such a one: pip install "ted-stream[transformers]"'
    )

from ted_stream.trainers.huggingface.pruning_mixin import PruningMixin

__all__ = ["PruningMixin"]

del accelerate, transformers
