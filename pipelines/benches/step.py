"""Time of a training step with each measure and with weights, beside the same step without; no loader, no trainer.

Needs torch (for ``resnet18`` torchvision, for ``llama_lora`` transformers), numpy and this package's
mathematics, so that it runs on machines without Composer: ``python -m pipelines.benches.step --device gpu`` in the
repository's root.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ted_stream.engine.step import StepRecorder
from ted_stream.pruning.measures import MEASURES, SITES, MaskGradient, Measure
from ted_stream.pruning.probe import StepProbe

from ..training.networks import convnet, resnet18_cifar
from .small_gpt import SmallGPT

__all__ = ["MODELS", "ROUNDS", "VARIANTS", "Row", "Workload", "bench_step", "describe", "header", "loss_of"]

ROUNDS = 15
AGAIN = "plain again"  # its ratio is what the method does not resolve

_CLASSES = 10
_BATCHES = 4  # made once, and trained on in turns
_BLOCK_SECONDS = 0.06
_FEWEST_STEPS = 2


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A model and what it trains on.

    Args:
        build: makes the model.
        inputs: of a batch, from its size.
        classes: that targets are of.
        batch_size: unless told another.
    """

    build: Callable[[], nn.Module]
    inputs: Callable[[int], Tensor]
    classes: int
    batch_size: int

    def batch(self, size: int) -> tuple[Tensor, Tensor]:
        """Random inputs and targets, one for each image or token."""
        inputs = self.inputs(size)
        return inputs, torch.randint(self.classes, inputs.shape[: 1 if inputs.ndim == 4 else 2])


def _images(build: Callable[..., nn.Module], batch_size: int) -> Workload:
    return Workload(
        build=lambda: build(classes=_CLASSES, in_channels=3).to(memory_format=torch.channels_last),  # pyright: ignore[reportCallIssue]
        inputs=lambda size: torch.randn(size, 3, 32, 32).to(memory_format=torch.channels_last),
        classes=_CLASSES,
        batch_size=batch_size,
    )


def _gpt(*, vocabulary: int, tokens: int, layers: int, width: int, batch_size: int) -> Workload:
    heads = width // 64
    return Workload(
        build=lambda: SmallGPT(vocabulary=vocabulary, max_length=tokens, layers=layers, heads=heads, width=width),
        inputs=lambda size: torch.randint(vocabulary, (size, tokens)),
        classes=vocabulary,
        batch_size=batch_size,
    )


def _llama_lora(*, vocabulary: int, tokens: int, layers: int, width: int, batch_size: int) -> Workload:
    def build() -> nn.Module:
        from .adapted_llama import AdaptedLlama  # needs transformers

        return AdaptedLlama(vocabulary=vocabulary, max_length=tokens, layers=layers, width=width)

    return Workload(
        build=build,
        inputs=lambda size: torch.randint(vocabulary, (size, tokens)),
        classes=vocabulary,
        batch_size=batch_size,
    )


_convnet = partial(convnet, channels=(16, 32, 64, 128))  # that of configs/cifar10_cpu.yaml

# By device and name. On a GPU the vocabulary is large, so that the logits count.
MODELS: dict[str, dict[str, Workload]] = {
    "cpu": {
        "resnet18": _images(resnet18_cifar, 8),
        "gpt": _gpt(vocabulary=4096, tokens=128, layers=2, width=128, batch_size=8),
        "llama_lora": _llama_lora(vocabulary=4096, tokens=128, layers=2, width=128, batch_size=8),
        "convnet": _images(_convnet, 128),
    },
    "gpu": {
        "resnet18": _images(resnet18_cifar, 128),
        "gpt": _gpt(vocabulary=32768, tokens=512, layers=6, width=384, batch_size=32),
        "llama_lora": _llama_lora(vocabulary=32768, tokens=512, layers=6, width=384, batch_size=32),
        "convnet": _images(_convnet, 128),
    },
}


def _named(measure: Measure) -> str:
    if measure.site is None:
        return next(name for name, kind in MEASURES.items() if type(measure) is kind)
    return f"mask_gradient, {measure.site}" + ("" if measure.norm is None else f", norm {measure.norm}")


_MEASURES = [
    *(MaskGradient(site) for site in SITES),
    MaskGradient("features", norm=1),
    *(kind() for kind in MEASURES.values() if kind is not MaskGradient),
]
# What a step measures, and whether it weighs samples.
VARIANTS: dict[str, tuple[Measure | None, bool]] = {
    AGAIN: (None, False),
    **{_named(measure): (measure, False) for measure in _MEASURES},
    "weights": (None, True),
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """A variant of a model's step beside the plain one.

    Args:
        model: its name.
        batch_size: samples of a step.
        variant: a key of ``VARIANTS``.
        plain: seconds of the plain step, by round.
        ratios: seconds of the variant's step per second of the plain one beside it, by round.
    """

    model: str
    batch_size: int
    variant: str
    plain: list[float]
    ratios: list[float]

    @property
    def quartiles(self) -> tuple[float, float, float]:
        """Lower quartile, median and upper quartile of the ratios."""
        low, middle, high = np.quantile(self.ratios, (0.25, 0.5, 0.75)).tolist()
        return low, middle, high


def bench_step(
    model: str,
    *,
    device: str = "cpu",
    rounds: int = ROUNDS,
    steps: int | None = None,
    batch_size: int | None = None,
    variants: Sequence[str] = tuple(VARIANTS),
) -> Iterator[Row]:
    """Time blocks of steps of one model, one without and one with what a variant calls, in turns; a row per variant.

    Both blocks of a round follow each other, and which is first changes from round to round: a machine that slows down
    slows both. Before each, a step that is not timed. A GPU is waited for at the ends of blocks alone, and batches stay
    on it; on the CPU, seconds are processor time, which does not count those of other processes.

    Args:
        model: a key of ``MODELS``.
        device: ``cpu``, or ``gpu``, which computes in bfloat16 (autocast).
        rounds: of every variant.
        steps: of a block; as many as fill 0.06 s, at least two, where it is ``None``.
        batch_size: samples of a step; the model's own where it is ``None``.
        variants: keys of ``VARIANTS``.
    """
    workload = MODELS[device][model]
    training = _Training(workload, batch_size or workload.batch_size, device)
    plain = StepProbe(None)
    training.block(plain, _BATCHES)  # what is chosen and allocated once
    if steps is None:
        steps = max(_FEWEST_STEPS, round(_BLOCK_SECONDS / training.block(plain, _FEWEST_STEPS)))
    for variant in variants:
        measure, weighted = VARIANTS[variant]
        probe = StepProbe(measure, weighted=weighted, loss=loss_of)
        pairs: list[tuple[float, float]] = []
        for number in range(rounds):
            if number % 2:
                theirs = training.block(probe, steps)
                pairs.append((training.block(plain, steps), theirs))
            else:
                ours = training.block(plain, steps)
                pairs.append((ours, training.block(probe, steps)))
        yield Row(
            model=model,
            batch_size=training.batch_size,
            variant=variant,
            plain=[seconds for seconds, _ in pairs],
            ratios=[with_it / seconds for seconds, with_it in pairs],
        )


def loss_of(outputs: Tensor, batch: Any) -> Tensor:
    """The mean cross-entropy over images or tokens."""
    return cross_entropy(outputs.flatten(0, -2), batch[1].flatten())


class _Training:
    """A model that is trained on, block by block.

    Args:
        workload: the model and its batches.
        batch_size: samples of a step.
        device: ``cpu`` or ``gpu``.
    """

    def __init__(self, workload: Workload, batch_size: int, device: str) -> None:
        torch.manual_seed(0)
        self.batch_size = batch_size
        self._on_gpu = device == "gpu"
        self._clock = time.perf_counter if self._on_gpu else time.process_time
        place = torch.device("cuda" if self._on_gpu else "cpu")
        self._model = workload.build().to(place).train()
        self._optimizer = torch.optim.SGD(self._model.parameters(), 1e-3, momentum=0.9)
        self._batches = [tuple(part.to(place) for part in workload.batch(batch_size)) for _ in range(_BATCHES)]
        self._ids = torch.arange(_BATCHES * batch_size, device=place).split(batch_size)
        self._weights = np.random.default_rng(0).uniform(0.5, 2, _BATCHES * batch_size).astype(np.float32)

    def block(self, probe: StepProbe, steps: int) -> float:
        """Train some steps with a probe, or without one if it neither measures nor weighs.

        Returns:
            Seconds of a step, the first one apart.
        """
        recorder = None
        if probe.measure is not None or probe.weighted:
            recorder = StepRecorder(probe)
            recorder.weigh(self._weights if probe.weighted else None, 1.0)
            probe.attach(self._model)
        try:
            self._step(recorder, 0)
            probe.check()
            self._wait()
            start = self._clock()
            for step in range(steps):
                self._step(recorder, 1 + step)
            self._wait()
            return (self._clock() - start) / steps
        finally:
            probe.detach()

    def _step(self, recorder: StepRecorder | None, step: int) -> None:
        """A training step, with what a trainer's adapter calls in it."""
        batch: Any = self._batches[step % _BATCHES]
        if recorder is not None:
            recorder.begin(self._ids[step % _BATCHES])
            batch = recorder.before_forward(batch)
        with self._precision():
            outputs = self._model(batch[0])
            loss = loss_of(outputs, batch)
        if recorder is not None:
            recorder.before_backward(batch, outputs, loss)
        loss.backward()
        if recorder is not None:
            recorder.after_backward()
        self._optimizer.step()
        self._optimizer.zero_grad()
        if recorder is not None:
            recorder.commit(step)

    def _precision(self) -> AbstractContextManager[Any]:
        return torch.autocast("cuda", torch.bfloat16) if self._on_gpu else nullcontext()

    def _wait(self) -> None:
        if self._on_gpu:
            torch.cuda.synchronize()


# What is shown --------------------------------------------------------------------------------------------------------


def header(device: str) -> str:
    """The machine, and what the columns are."""
    name = torch.cuda.get_device_name() if device == "gpu" else f"CPU, {torch.get_num_threads()} threads"
    precision = "bfloat16" if device == "gpu" else "float32"
    return (
        f"{name}, {precision}; torch {torch.__version__}\n"
        "Seconds of the step per second of the plain step beside it: median (quartiles) of the rounds.\n"
        f"{'model':12}{'batch':>6}{'plain, ms':>11}  {'variant':34}ratio"
    )


def describe(row: Row) -> str:
    """A row in one line."""
    low, middle, high = row.quartiles
    plain = f"{1000 * median(row.plain):.3g}"
    return f"{row.model:12}{row.batch_size:6}{plain:>11}  {row.variant:34}{middle:.3f} ({low:.3f} – {high:.3f})"


def _main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=list(MODELS), default="gpu" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--model", choices=list(MODELS["cpu"]), nargs="+", default=["resnet18", "gpt"])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    given = parser.parse_args()
    print(header(given.device), flush=True)
    for model in given.model:
        for row in bench_step(model, device=given.device, rounds=given.rounds):
            print(describe(row), flush=True)


if __name__ == "__main__":
    _main()
