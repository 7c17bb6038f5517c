"""``ted-stream methods``."""

import inspect
import sys
from dataclasses import MISSING, dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

if TYPE_CHECKING:
    from ted_stream.methods import Method
    from ted_stream.methods.static import StaticMethod

__all__ = ["Entry", "entries", "methods"]

# What stands for a setting that has no default, where a method must be made to say what it measures.
EXAMPLES: dict[Any, Any] = {float: 0.5, str: "reference.parquet"}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What is known of a method without running it.

    Attributes:
        name: on the command line.
        cls: its class.
        kind: ``dynamic``, which prunes while training, or ``static``, which scores once.
        needs: what it asks for, with its defaults: ``labels``, ``tokens`` (prompts and answers), ``layer`` (that the
            layer of the logits is found), ``count`` (how many will be kept), ``reference`` (a file of reference
            losses), ``weights`` (a loss that weighs samples).
        measures: what a training step measures for it, if anything.
        cost: beside a training run.
    """

    name: str
    cls: "type[Method] | type[StaticMethod]"
    kind: str
    needs: tuple[str, ...]
    measures: str
    cost: str

    @property
    def line(self) -> str:
        """The first line of its docstring."""
        return (self.cls.__doc__ or "").strip().splitlines()[0]

    @property
    def card(self) -> Path | None:
        """The text beside its file, if there is one."""
        path = Path(str(sys.modules[self.cls.__module__].__file__)).with_suffix(".md")
        return path if path.is_file() else None


def entries() -> dict[str, Entry]:
    """All registered methods by name, the dynamic ones first."""
    from ted_stream.methods import METHODS
    from ted_stream.methods.static import TrajectoryScore
    from ted_stream.pipelines.training.reference import SCORERS

    found = {name: _dynamic(name, cls, "dynamic") for name, cls in METHODS.items()}
    for name, cls in SCORERS.items():
        found[name] = _dynamic(name, cls, "static") if issubclass(cls, TrajectoryScore) else _static(name, cls)
    return found


def _dynamic(name: str, cls: "type[Method]", kind: str) -> Entry:
    hints = get_type_hints(cls)
    required = [field.name for field in fields(cls) if field.default is MISSING]
    method = cls(**{field: EXAMPLES[hints[field]] for field in required})
    measure = method.measure()
    needs = {
        "labels": method.needs_labels,
        "layer": method.weighs_samples or (measure is not None and measure.needs_layer),
        "weights": method.weighs_samples,
        "reference": "reference" in required,
    }
    return Entry(
        name=name,
        cls=cls,
        kind=kind,
        needs=tuple(need for need, is_needed in needs.items() if is_needed),
        measures="" if measure is None else type(measure).__name__,
        cost="no extra pass",
    )


def _static(name: str, cls: "type[StaticMethod]") -> Entry:
    needs = {
        "labels": cls.needs_labels,
        "tokens": cls.needs_tokens,
        "layer": cls.needs_features,
        "count": cls.needs_count,
    }
    if "folds" in {field.name for field in fields(cls)}:
        cost = "surrogate per fold"
    elif cls.passes_every_epoch:
        cost = "a pass every epoch"
    else:
        cost = "one pass" if cls.needs_surrogate else "one pass, no surrogate"
    needed = tuple(need for need, is_needed in needs.items() if is_needed)
    return Entry(name=name, cls=cls, kind="static", needs=needed, measures="", cost=cost)


def methods(
    name: Annotated[str | None, typer.Argument(help="Show the settings and the card of one.")] = None,
) -> None:
    """Show all methods: those that prune while training (`pruning.method=`), and those that score once (`score`).

    For example: ted-stream methods ted
    """
    found = entries()
    if name is None:
        _show_all(found)
        return
    if name not in found:
        nearest = get_close_matches(name, found, n=1)
        raise ValueError(f"no method {name!r}; " + (f"did you mean {nearest[0]}?" if nearest else "see all of them."))
    _show_one(found[name])


def _show_all(found: dict[str, Entry]) -> None:
    from rich.table import Table

    from ted_stream.cli.show import console

    titles = {"dynamic": "prune while training: pruning.method=NAME", "static": "score once: ted-stream score"}
    for kind, title in titles.items():
        table = Table(title=title, title_justify="left")
        table.add_column("name, class", no_wrap=True)
        table.add_column("what it does")
        table.add_column("cost, and what it measures and needs")
        for entry in found.values():
            if entry.kind == kind:
                asked = [entry.cost]
                asked += [f"measures {entry.measures}"] if entry.measures else []
                asked += [f"needs {', '.join(entry.needs)}"] if entry.needs else []
                table.add_row(f"{entry.name}\n[dim]{entry.cls.__name__}[/]", entry.line, "\n".join(asked))
        console.print(table)


def _show_one(entry: Entry) -> None:
    from rich.markdown import Markdown
    from rich.table import Table

    from ted_stream.cli.show import console

    used = f"pruning.method={entry.name}" if entry.kind == "dynamic" else f"ted-stream score CONFIG method={entry.name}"
    table = Table(title=f"{entry.cls.__name__}: {used}", title_justify="left")
    for column in ("setting", "type", "default"):
        table.add_column(column)
    for field in fields(entry.cls):
        kind = field.type.__name__ if isinstance(field.type, type) else str(field.type)
        default = "required" if field.default is MISSING else repr(field.default)
        table.add_row(field.name, kind, default)
    if fields(entry.cls):
        console.print(table)
    else:
        console.print(f"{entry.cls.__name__}: {used}; no settings", highlight=False)
    if entry.card is not None:
        console.print(Markdown(entry.card.read_text()))
        console.print(f"card: {entry.card}", soft_wrap=True, highlight=False)
    else:
        console.print(inspect.getdoc(entry.cls) or "", highlight=False, markup=False)
