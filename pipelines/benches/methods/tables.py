"""A sweep's results as Markdown: means over seeds, and differences that are paired over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, stdev

import numpy as np

from ...training.paired import paired
from .run import Outcome
from .sweep import BASELINES, FULL

__all__ = ["grouped", "markdown", "seconds_to"]

Group = tuple[str, int, float]


def grouped(outcomes: Sequence[Outcome]) -> dict[Group, dict[str, list[Outcome]]]:
    """By what is compared, the arms' results, full data's among them; arms in the order of their accuracy."""
    groups: dict[Group, dict[str, list[Outcome]]] = {}
    for outcome in outcomes:
        if outcome.arm != FULL:
            group = groups.setdefault((outcome.regime, outcome.epochs, outcome.saving), {})
            group.setdefault(outcome.arm, []).append(outcome)
    for (regime, epochs, _), arms in groups.items():
        full = [one for one in outcomes if one.arm == FULL and (one.regime, one.epochs) == (regime, epochs)]
        if full:
            arms[FULL] = full
    return {
        group: dict(sorted(arms.items(), key=lambda arm: -mean(one.accuracy for one in arm[1])))
        for group, arms in groups.items()
    }


def markdown(outcomes: Sequence[Outcome]) -> str:
    """Two tables for every regime, length and saving: what came of each arm, and differences from the baselines."""
    parts = []
    for (regime, epochs, saving), arms in grouped(outcomes).items():
        parts.append(f"## {regime}, {epochs} epochs, save ratio {saving:g}\n\n{_means(arms)}\n{_unsolved(arms)}")
    for regime in dict.fromkeys(one.regime for one in outcomes):
        parts.append(
            f"## {regime}: seconds until a test first finds the accuracy that full data ends with, the least of an "
            "arm's lengths and savings\n\n"
            f"{_times_to_full([one for one in outcomes if one.regime == regime])}"
        )
    return "\n".join(parts)


def _means(arms: dict[str, list[Outcome]]) -> str:
    columns = [
        "",
        "seeds",
        "accuracy, %",
        *(f"less {baseline}" for baseline in BASELINES),
        "worst class, %",
        "cross entropy",
        "save ratio",
        "time, of full data's",
        "between epochs",
        "returning, %",
    ]
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for name, found in arms.items():
        row = [
            name,
            str(len(found)),
            _spread([100 * one.accuracy for one in found], 2),
            *(_difference(found, arms.get(baseline, [])) for baseline in BASELINES),
            f"{100 * mean(one.worst_class for one in found):.1f}",
            f"{mean(one.cross_entropy for one in found):.3f}",
            f"{mean(one.save_ratio for one in found):.3f}",
            _relative(found, arms.get(FULL, [])),
            f"{mean(one.boundary_seconds / one.seconds for one in found):.3f}",
            "" if np.isnan(found[0].returning) else f"{100 * mean(one.returning for one in found):.1f}",
        ]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def seconds_to(accuracy: float, outcomes: Sequence[Outcome]) -> float:
    """The least seconds after which a test of one of the runs found this accuracy, scoring before it included.

    Returns:
        NaN if none did.
    """
    found = [
        seconds + one.scoring_seconds
        for one in outcomes
        for seconds, reached in zip(one.curve[::2], one.curve[1::2], strict=True)
        if reached >= accuracy
    ]
    return min(found, default=float("nan"))


def _times_to_full(outcomes: Sequence[Outcome]) -> str:
    """By arm, over all its lengths and savings, seed by seed; full data is that of the shortest runs.

    Pruned runs of more epochs may then find in less time what it ends with.
    """
    shortest = min(one.epochs for one in outcomes)
    full = {one.seed: one for one in outcomes if one.arm == FULL and one.epochs == shortest}
    rows = []
    for name in dict.fromkeys(one.arm for one in outcomes):
        seconds = {}
        for seed, target in full.items():
            mine = [one for one in outcomes if one.arm == name and one.seed == seed]
            if mine:
                seconds[seed] = seconds_to(target.accuracy, mine) / target.seconds
        reached = [share for share in seconds.values() if not np.isnan(share)]
        if seconds:
            share = _spread(reached, 2) if reached else ""
            rows.append((-len(reached), mean(reached) if reached else 0.0, name, len(seconds), share))
    lines = ["|  | seeds that reach it | time, of full data's |", "|---|---|---|"]
    lines += [f"| {name} | {-less} of {seeds} | {share} |" for less, _, name, seeds, share in sorted(rows)]
    return "\n".join(lines) + "\n"


def _unsolved(arms: dict[str, list[Outcome]]) -> str:
    lines = []
    for name, found in arms.items():
        diverged = sum(bool(np.isnan(one.cross_entropy)) for one in found)
        if diverged:
            lines.append(f"Diverged, and in the means as what they are: {name} ({diverged} of {len(found)} runs).\n")
        others = [one for one in found if not one.solved]
        if others:
            saved = ", ".join(f"{one.save_ratio:.3f}{_at(one.prune_ratio)}" for one in others)
            lines.append(f"Not at the saving asked for: {name} ({saved}).\n")
    return "".join(lines)


def _at(prune_ratio: float) -> str:
    return "" if np.isnan(prune_ratio) else f" at prune_ratio {prune_ratio:.3f}"


def _spread(values: Sequence[float], digits: int) -> str:
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{spread}"


def _pairs(found: Sequence[Outcome], others: Sequence[Outcome]) -> list[tuple[Outcome, Outcome]]:
    by_seed = {one.seed: one for one in others}
    return [(one, by_seed[one.seed]) for one in found if one.seed in by_seed]


def _difference(found: Sequence[Outcome], others: Sequence[Outcome]) -> str:
    pairs = _pairs(found, others)
    if not pairs or found is others:
        return ""
    values, baseline = ([100 * pair[side].accuracy for pair in pairs] for side in (0, 1))
    difference, half = paired(values, baseline)
    return f"{difference:+.2f}" + ("" if np.isnan(half) else f" ± {half:.2f}")


def _relative(found: Sequence[Outcome], full: Sequence[Outcome]) -> str:
    """Seconds over those of full data of the same seed, and of a scoring run before."""
    pairs = _pairs(found, full)
    if not pairs:
        return ""
    text = f"{mean(one.seconds / other.seconds for one, other in pairs):.2f}"
    scoring = mean(one.scoring_seconds / other.seconds for one, other in pairs)
    return f"{text} + {scoring:.2f}" if scoring else text
