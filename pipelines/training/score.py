"""A scoring run: surrogates are trained, samples scored, and a subset chosen."""

from __future__ import annotations

import gc
import json
import shutil
from pathlib import Path

from ted_stream.engine import Ranks
from ted_stream.files import is_remote, write_bytes
from ted_stream.methods.static import StaticMethod
from ted_stream.skip_list import DatasetLayout

from ..corpora.prepared import Description, read_description
from .loop_host import join_ranks
from .score_results import SCORE_FILE, SCORES_FILE, SKIP_LIST_FILE, ScoreResult, seeds_of, write_results
from .score_settings import Scoring
from .settings import ConfigError
from .surrogates import SCORING, SURROGATES, Surrogate, Told, num_surrogates
from .train import LEFTOVERS, check_data, claim_folder

__all__ = ["ScoreResult", "score"]

BEGUN_FILE = "begun.json"
OWN_LEFTOVERS = (SCORING, SURROGATES, SCORES_FILE, SKIP_LIST_FILE, SCORE_FILE)


def score(scoring: Scoring) -> ScoreResult | None:
    """Score the training split of a dataset, and choose a subset of it if one is asked for.

    Training is by the plain loop, whatever trainer the config names. Interrupted, the same settings with
    ``autoresume`` go on: with training from its checkpoints, with passes from what they have written.

    Args:
        scoring: from `load_scoring`.

    Returns:
        What happened, on rank 0, where it is also written to ``score.json`` in the run folder; ``None`` elsewhere.

    Raises:
        ConfigError: settings that contradict the dataset or each other.
        FileNotFoundError: the dataset does not exist.
        FileExistsError: the run folder holds another run.
        ValueError: the method finds no scores.
    """
    join_ranks()
    ranks, settings = Ranks(), scoring.settings
    description = read_description(settings.data.path)
    check_data(settings, description, ranks.world_size)
    _check_labels(scoring, description)
    told: list[Told] = []
    layout: DatasetLayout | None = None
    for number in range(num_surrogates(scoring)):
        gc.collect()  # streaming gives up a folder only when the earlier surrogate's dataset is collected
        surrogate = Surrogate(scoring, number, description, ranks)
        if layout is None:
            layout = surrogate.layout
            ranks.on_rank_zero(lambda layout=layout: _claim(scoring, layout))  # nothing can be refused any more
        found = surrogate.tell()
        told += [] if found is None else [found]
        del surrogate
    if ranks.rank:
        return None
    assert layout is not None, "there is a surrogate"
    result = write_results(scoring, layout, told)
    if not scoring.choice.keep_vectors and not is_remote(settings.folder):
        shutil.rmtree(Path(settings.folder) / SCORING, ignore_errors=True)
    return result


def _check_labels(scoring: Scoring, description: Description) -> None:
    needs = isinstance(scoring.method, StaticMethod) and scoring.method.needs_labels
    path, balance = scoring.settings.data.path, scoring.choice.balance
    if description.classes or not (needs or balance != "none"):
        return
    what, fix = (
        (f"{scoring.name} looks at classes", "take a method that does not, such as el2n")
        if needs
        else (f"balance={balance} shares by class", "set balance=none")
    )
    raise ConfigError(f"{what}, but {path} holds {description.kind}, whose samples have none; {fix}.")


def _claim(scoring: Scoring, layout: DatasetLayout) -> None:
    """Make the run folder this run's own; called on rank 0 for all.

    Raises:
        ConfigError: it is to go on with passes of another method, or over another dataset.
    """
    settings = scoring.settings
    begun = None if is_remote(settings.folder) else Path(settings.folder) / SCORING / BEGUN_FILE
    what = {"method": repr(scoring.method), "dataset": layout.fingerprint, "seeds": seeds_of(scoring)}
    if settings.autoresume and begun is not None and begun.exists():
        before = json.loads(begun.read_text())
        for name, value in what.items():
            if before.get(name) != value:
                raise ConfigError(
                    f"{name} is {value}, but the scoring run in {settings.folder} was begun with {before.get(name)}; "
                    "go on with that, set autoresume=false and overwrite=true to begin anew, or folder= to another "
                    "place."
                )
    claim_folder(settings, (*LEFTOVERS, *OWN_LEFTOVERS))
    if begun is not None:
        write_bytes(str(begun), json.dumps(what).encode())
