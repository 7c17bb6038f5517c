"""The methods as algorithms of llm-foundry's registry: a section of a YAML becomes a DataPruning around a method."""

import inspect
from dataclasses import MISSING, fields
from difflib import get_close_matches
from typing import Any, ClassVar

from ted_stream.methods import METHODS, Method
from ted_stream.trainers.composer import DataPruning

__all__ = ["ALGORITHMS"]

# What is said of the run, and not of the method.
_OF_RUN = [name for name in inspect.signature(DataPruning).parameters if name != "method"]
# As on our command line, but where that would not tell that samples are pruned.
_NAMES = {"composed": "composed_pruning", "random": "random_pruning"}


class FromSettings(DataPruning):
    """What the registry takes, a class of algorithms, of the settings that stand below its name.

    It makes a plain DataPruning, whose state Composer finds in a checkpoint by the name of the class, whatever the
    method: so another method than the checkpoint's is refused, where its scores would else be lost.
    """

    name: ClassVar[str]
    method_class: ClassVar[type[Method]]

    def __new__(cls, **settings: Any) -> DataPruning:
        """See :func:`_data_pruning`."""
        return _data_pruning(cls.name, cls.method_class, settings)


def _algorithm(name: str, method: type[Method]) -> type[FromSettings]:
    said = {"name": name, "method_class": method, "__doc__": method.__doc__, "__module__": __name__}
    return type(name, (FromSettings,), said)


def _data_pruning(name: str, method: type[Method], settings: dict[str, Any]) -> DataPruning:
    """The method with its settings in a DataPruning with the rest of them.

    Raises:
        TypeError: for a value of another type.
        ValueError: for a setting that there is not, that lacks, or that is out of range.
    """
    of_method = {field.name: field for field in fields(method)}
    known = [*of_method, *_OF_RUN]
    for setting in settings:
        if setting not in known:
            close = get_close_matches(setting, known, n=1)
            meant = f"did you mean {close[0]}? " if close else ""
            raise ValueError(
                f"algorithms.{name}.{setting}: there is no such setting; {meant}{name} has {', '.join(known)}."
            )
    lacking = [
        setting
        for setting, field in of_method.items()
        if field.default is MISSING and field.default_factory is MISSING and setting not in settings
    ]
    if lacking:
        raise ValueError(f"algorithms.{name} has no value for {lacking[0]}. Give one: {name}: {{{lacking[0]}: …}}")
    made = method(**{setting: value for setting, value in settings.items() if setting in of_method})
    return DataPruning(made, **{setting: value for setting, value in settings.items() if setting in _OF_RUN})


_METHODS = {_NAMES.get(name, name): method for name, method in METHODS.items()}
ALGORITHMS = {name: _algorithm(name, method) for name, method in _METHODS.items()}
"""By their names in a YAML."""


def __getattr__(name: str) -> type[FromSettings]:
    if name in ALGORITHMS:
        return ALGORITHMS[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
