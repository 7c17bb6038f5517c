"""What is asked of a scoring run: the method and its settings, how a subset is chosen, and the surrogate's config."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, make_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ted_stream.files import is_remote
from ted_stream.methods.static import AUM, ReferenceLoss, StaticMethod, TrajectoryScore
from ted_stream.methods.static.subset import BALANCES
from ted_stream.pruning.settings import check_number

from .reference import SCORERS, Reference
from .settings import ConfigError, Settings, check_choice, counts_batches, load_settings, mistaken

__all__ = ["Scoring", "load_scoring"]


@dataclass
class Choice:
    """What a scoring run is asked for beside its method's settings and the config."""

    method: str = ""
    """A static method that `ted-stream methods` lists; it must be given."""
    prune_ratio: float | None = None
    """s in [0, 1): write a skip-list that keeps ⌈(1 − s)·N⌉ samples."""
    balance: str = "none"
    """Shares of the classes among the kept: `none`, `as_they_are`, `sqrt`, `equal`."""
    strata: int = 0
    """Cover the range of the scores in so many strata; 0 keeps the highest."""
    cutoff: float = 0.0
    """Share of the hardest samples that is left out first."""
    train: bool = True
    """Train the model before it scores; false takes it as the config's section `model` gives it, or as it is in the
    loop's checkpoint `load_path`."""
    runs: int = 1
    """Surrogates, of seeds that count up from the config's, whose scores are averaged."""
    keep_vectors: bool = False
    """Leave what the passes wrote in the folder `scoring`."""


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """A scoring run, checked.

    Attributes:
        name: of the method.
        method: with its settings.
        choice: how a subset is chosen, and how often a surrogate is trained.
        settings: of the surrogate's training.
    """

    name: str
    method: StaticMethod | TrajectoryScore
    choice: Choice
    settings: Settings

    @property
    def reference(self) -> Reference | None:
        """The method, if it is that."""
        return self.method if isinstance(self.method, Reference) else None

    @property
    def keeps_lowest(self) -> bool:
        """Whether low scores are kept: reference losses stay the losses that they are."""
        return self.reference is not None


def load_scoring(path: str | Path, overrides: Sequence[str]) -> Scoring:
    """Read a config file and what is asked of a scoring run.

    Args:
        path: a YAML file, as for training.
        overrides: ``key=value``: those of `Choice`, the method's settings by their names, and any setting of a config.

    Raises:
        FileNotFoundError: no such file.
        ConfigError: a wrong name or value, or values that contradict each other; naming what to write instead.
    """
    own, others = _divided(overrides, {option.name for option in fields(Choice)})
    choice: Choice = _typed(Choice, own)
    if not choice.method:
        raise ConfigError(f"no method; set method=NAME, one of {', '.join(SCORERS)}.")
    check_choice("method", choice.method, list(SCORERS))
    names = [option.name for option in fields(SCORERS[choice.method])]
    of_method, others = _divided(others, set(names))
    of_config = {option.name for option in fields(Settings)}
    for override in others:
        key = override.partition("=")[0]
        if "." not in key and key not in of_config:
            raise ConfigError(_unknown(key, choice.method, names, of_config))
    settings = load_settings(path, ["pruning.method=none", *others, "trainer=loop"])
    method = _method(choice.method, of_method)
    scoring = Scoring(name=choice.method, method=method, choice=choice, settings=settings)
    _check_choice_of_subset(scoring)
    _check_settings(scoring)
    return scoring


# Reading -----------------------------------------------------------------------------------------------------------


def _divided(overrides: Iterable[str], names: set[str]) -> tuple[list[str], list[str]]:
    """The overrides of these names, and the others."""
    overrides = list(overrides)
    mine = [override for override in overrides if override.partition("=")[0] in names and "=" in override]
    return mine, [override for override in overrides if override not in mine]


def _typed(schema: type, overrides: Sequence[str]) -> Any:
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), OmegaConf.from_dotlist([*overrides])))
    except OmegaConfBaseException as error:
        raise ConfigError(mistaken(error, schema)) from error


def _method(name: str, overrides: Sequence[str]) -> StaticMethod | TrajectoryScore:
    cls = SCORERS[name]
    hints = get_type_hints(cls)
    schema = make_dataclass("Method", [(option.name, hints[option.name] | None, None) for option in fields(cls)])
    values = vars(_typed(schema, overrides))
    given = {override.partition("=")[0] for override in overrides}
    try:
        return cls(**{key: value for key, value in values.items() if key in given})
    except (TypeError, ValueError) as error:
        raise ConfigError(f"method={name}: {error}") from error


def _unknown(key: str, method: str, names: Sequence[str], of_config: set[str]) -> str:
    others = [name for name, cls in SCORERS.items() if key in {option.name for option in fields(cls)}]
    if others:
        has = f"it has {', '.join(names)}" if names else "it has none"
        return f"{key}: {method} has no such setting, {has}; it is one of {', '.join(others)}."
    known = [option.name for option in fields(Choice)] + [*names, *sorted(of_config)]
    nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"no setting {key}; " + (f"did you mean {nearest[0]}?" if nearest else f"there is {', '.join(known)}.")


# Checking ----------------------------------------------------------------------------------------------------------


def _check_choice_of_subset(scoring: Scoring) -> None:
    choice, name = scoring.choice, scoring.name
    check_choice("balance", choice.balance, BALANCES)
    fixes = {
        "cutoff": ("[0, 1)", "it is the share of the hardest samples to leave out first."),
        "strata": ("[0, inf)", "it is a count, and 0 keeps the highest scores."),
        "runs": ("[1, inf)", "it is the number of surrogates."),
    }
    if choice.prune_ratio is not None:
        fixes["prune_ratio"] = ("[0, 1)", "it is the fraction to prune, so 0.7 keeps 30 %. Give no percentage.")
    for setting, (bounds, fix) in fixes.items():
        try:
            check_number(setting, getattr(choice, setting), bounds, fix=fix)
        except ValueError as error:
            raise ConfigError(str(error)) from error
    shaping = _shaping(choice)
    needs_count = isinstance(scoring.method, StaticMethod) and scoring.method.needs_count
    if choice.prune_ratio is None and needs_count:
        raise ConfigError(
            f"{name} chooses a set of a given size: set prune_ratio, for example prune_ratio=0.7 to keep 30 %."
        )
    if choice.prune_ratio is None and shaping:
        raise ConfigError(
            f"{_listed(shaping)} no effect without prune_ratio: no subset is chosen. Set prune_ratio=, or leave it out."
        )
    if needs_count and shaping:
        raise ConfigError(
            f"{_listed(shaping)} no effect with {name}, which chooses the set itself. Leave it out, or take a method "
            "that scores every sample on its own, such as el2n."
        )
    easiest_first = scoring.reference is not None or (
        isinstance(scoring.method, AUM | ReferenceLoss) and scoring.method.keep in ("easiest", "lowest")
    )
    if easiest_first and (choice.strata or choice.cutoff):
        raise ConfigError(
            f"{_listed(shaping)} no meaning with {name}, whose highest scores are the easiest samples: the hardest are "
            "left out first. Leave it out, or take a method whose highest scores are the hardest, such as el2n, or aum "
            "with keep=hardest."
        )
    _check_untrained(scoring)
    averages = isinstance(scoring.method, StaticMethod) and scoring.method.averages_runs
    if choice.runs > 1 and not averages:
        able = [key for key, cls in SCORERS.items() if getattr(cls, "averages_runs", False)]
        raise ConfigError(
            f"runs is {choice.runs}, but scores of {name} are those of one surrogate; set runs=1, or take one of "
            f"{', '.join(able)}."
        )
    reference = scoring.reference
    if reference is not None and reference.holdout is not None and choice.prune_ratio is not None:
        raise ConfigError(
            f"prune_ratio is {choice.prune_ratio}, but with holdout={reference.holdout} the samples that the reference "
            "is trained on have no loss to be chosen by; set folds=2 instead of holdout, or leave out prune_ratio."
        )


def _check_untrained(scoring: Scoring) -> None:
    method, name = scoring.method, scoring.name
    if scoring.choice.train:
        return
    if not isinstance(method, StaticMethod) or method.passes_every_epoch or scoring.reference is not None:
        fix = "set checkpoint= to give it a model" if scoring.reference is not None else "take another, such as el2n"
        raise ConfigError(f"train=false leaves out the training by which {name} scores; set train=true, or {fix}.")
    if not method.needs_surrogate:
        raise ConfigError(f"train=false has no effect with {name}, which trains nothing; leave it out.")


def _shaping(choice: Choice) -> Mapping[str, Any]:
    """What is asked of the choice of a subset beside its size."""
    asked = {name: getattr(choice, name) for name in ("balance", "strata", "cutoff")}
    return {name: value for name, value in asked.items() if value not in ("none", 0)}


def _listed(values: Mapping[str, Any]) -> str:
    return f"{', '.join(f'{name}={value}' for name, value in values.items())} {'has' if len(values) == 1 else 'have'}"


def _check_settings(scoring: Scoring) -> None:
    settings, name = scoring.settings, scoring.name
    if settings.pruning.method != "none":
        raise ConfigError(
            f"pruning.method is {settings.pruning.method}, but what scores samples is trained on all of them; set "
            "pruning.method=none."
        )
    if settings.data.skip_list is not None:
        raise ConfigError(
            f"data.skip_list is {settings.data.skip_list}, but all samples are scored; set data.skip_list=null."
        )
    if counts_batches(settings):
        raise ConfigError(
            f"max_duration is {settings.max_duration}, but what scores samples is trained for whole epochs; give them, "
            "such as 8ep."
        )
    if settings.load_path is not None and scoring.choice.train:
        raise ConfigError(
            f"load_path is {settings.load_path}; a scoring run goes on from its own folder: set load_path=null and "
            "autoresume=true, or train=false to score with the model of that checkpoint, as it is."
        )
    if not isinstance(scoring.method, StaticMethod):
        return
    if is_remote(settings.folder):
        raise ConfigError(
            f"folder is {settings.folder}, but the passes of {name} write columns that are mapped into memory; set "
            "folder= to a local folder, and copy scores.parquet from there."
        )
    if settings.fsdp:
        raise ConfigError(
            f"fsdp shards the model, but the passes of {name} need a whole one on every rank; set fsdp=false."
        )
