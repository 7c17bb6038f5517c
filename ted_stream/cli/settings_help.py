"""The settings that a config takes, for ``--help``: read from the source of their schema, which would import torch."""

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from inspect import cleandoc
from pathlib import Path
from typing import Any

from typer.core import TyperCommand

__all__ = ["Setting", "WithScoringSettings", "WithTrainingSettings", "scoring_settings", "training_settings"]

_SCHEMAS = Path(__file__).parents[1] / "pipelines" / "training"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One setting of a config.

    Attributes:
        name: dotted, as in an override.
        default: as a YAML file has it; empty where a value must be given.
        told: what it is, in a sentence.
    """

    name: str
    default: str
    told: str


def training_settings() -> list[Setting]:
    """Of ``train`` and ``compare``, but for those of the pruning methods themselves."""
    return list(_settings_in(_Schema("settings.py"), "Settings"))


def scoring_settings() -> list[Setting]:
    """What ``score`` takes beside the settings of a method and of a config."""
    return list(_settings_in(_Schema("score_settings.py"), "Choice"))


class _Schema:
    """The source of a schema."""

    def __init__(self, file: str) -> None:
        self.classes: dict[str, ast.ClassDef] = {}
        self.choices: Mapping[str, Mapping[str, frozenset[str]]] = {}
        for node in ast.parse((_SCHEMAS / file).read_bytes()).body:
            if isinstance(node, ast.ClassDef):
                self.classes[node.name] = node
            elif isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "CHOICES":
                self.choices = _evaluated(node.value)


def _evaluated(node: ast.expr | None) -> Any:
    """A literal, of which ``frozenset`` of one is one too."""
    if isinstance(node, ast.Call):
        return frozenset(ast.literal_eval(node.args[0]))
    if isinstance(node, ast.Dict):
        return {_evaluated(key): _evaluated(value) for key, value in zip(node.keys, node.values, strict=True)}
    assert node is not None, "the choices are written out"
    return ast.literal_eval(node)


def _settings_in(schema: _Schema, name: str, section: str = "") -> Iterator[Setting]:
    body = schema.classes[name].body
    for node, after in zip(body, [*body[1:], None], strict=True):
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        setting, kind = node.target.id, ast.unparse(node.annotation)
        if kind in schema.classes:
            yield from _settings_in(schema, kind, f"{setting}.")
            continue
        told = _first_sentence(after)
        choices = schema.choices.get(section.rstrip("."), {})
        if setting == "name" and choices:
            told = f"{told} One of {', '.join(choices)}."
        elif choices:
            told = f"{told} Of {', '.join(choice for choice, taken in choices.items() if setting in taken)}."
        yield Setting(name=section + setting, default=_default(node.value), told=told)


def _first_sentence(node: ast.stmt | None) -> str:
    """Of the text below a setting; empty where there is none."""
    if not isinstance(node, ast.Expr) or not isinstance(node.value, ast.Constant):
        return ""
    text = " ".join(cleandoc(str(node.value.value)).split()).replace("`", "")
    return text.partition(". ")[0].rstrip(".") + "."


def _default(node: ast.expr | None) -> str:
    if isinstance(node, ast.Name):  # MISSING
        return ""
    value = None if node is None else ast.literal_eval(node)
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def _show(title: str, settings: list[Setting], *notes: str) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE, pad_edge=False)
    table.add_column("setting", no_wrap=True, style="cyan")
    table.add_column("default", overflow="fold")
    table.add_column("", ratio=1)
    for setting in settings:
        table.add_row(setting.name, setting.default or "required", setting.told)
    console = Console()
    console.print(table, markup=False)
    for note in notes:
        console.print(note, highlight=False, markup=False)


class WithTrainingSettings(TyperCommand):
    """A command whose help lists what a config takes."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help."""
        super().format_help(ctx, formatter)
        _show(
            "Settings of a config, each also as KEY=VALUE",
            training_settings(),
            "Beside these, the settings of the pruning method by their names, such as pruning.prune_ratio=0.5: "
            "ted-stream methods ted lists those of ted, with their defaults.",
        )


class WithScoringSettings(TyperCommand):
    """The same of scoring."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help."""
        super().format_help(ctx, formatter)
        _show(
            "Settings of scoring, as KEY=VALUE",
            scoring_settings(),
            "Beside these, the settings of the method by their names (ted-stream methods el2n lists those of el2n), "
            "and all of a config, which ted-stream train --help lists.",
        )
