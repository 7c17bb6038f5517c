"""A scoring run: surrogates are trained, samples scored, and a subset chosen."""

from __future__ import annotations

import gc
import json
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ted_stream.engine import Ranks
from ted_stream.engine.run_folder import RunLock
from ted_stream.files import is_remote, join, read_bytes, write_bytes
from ted_stream.methods.static import StaticMethod
from ted_stream.skip_list import DatasetLayout

from ..corpora.prepared import Description, read_description
from .claiming import LEFTOVERS, claim_folder
from .loop_host import join_ranks
from .results import FREE_SETTINGS
from .score_results import SCORE_FILE, SCORES_FILE, SKIP_LIST_FILE, ScoreResult, seeds_of, write_results
from .score_settings import Scoring
from .settings import ConfigError
from .surrogates import SCORING, SURROGATES, Surrogate, Told, num_surrogates
from .train import check_data

__all__ = ["ScoreResult", "score"]

ASKED_FILE = "asked.json"
OWN_LEFTOVERS = (SCORING, SURROGATES, SCORES_FILE, SKIP_LIST_FILE, SCORE_FILE, ASKED_FILE)


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
        FolderInUseError: a job that is at work has the run folder.
        ValueError: the method finds no scores.
    """
    join_ranks()
    ranks, settings = Ranks(), scoring.settings
    description = read_description(settings.data.path)
    check_data(settings, description, ranks.world_size)
    _check_labels(scoring, description)
    _check_tokens(scoring, description)
    if scoring.reference is not None:
        scoring.reference.check_size(description.samples["train"])
    with ExitStack() as held:
        return _score(scoring, description, ranks, held)


def _score(scoring: Scoring, description: Description, ranks: Ranks, held: ExitStack) -> ScoreResult | None:
    told: list[Told] = []
    layout: DatasetLayout | None = None
    for number in range(num_surrogates(scoring)):
        gc.collect()  # streaming gives up a folder only when the earlier surrogate's dataset is collected
        surrogate = Surrogate(scoring, number, description, ranks)
        if layout is None:
            layout = surrogate.layout
            # Nothing can be refused any more.
            ranks.on_rank_zero(lambda layout=layout: _claim(scoring, layout, held))
        found = surrogate.tell()
        told += [] if found is None else [found]
        del surrogate
    if ranks.rank:
        return None
    assert layout is not None, "there is a surrogate"
    result = write_results(scoring, layout, told)
    if not scoring.choice.keep_vectors and not is_remote(scoring.settings.folder):
        shutil.rmtree(Path(scoring.settings.folder) / SCORING, ignore_errors=True)
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


def _check_tokens(scoring: Scoring, description: Description) -> None:
    if isinstance(scoring.method, StaticMethod) and scoring.method.needs_tokens and description.kind != "instructions":
        raise ConfigError(
            f"{scoring.name} compares answers with and without their prompts, but {scoring.settings.data.path} holds "
            f"{description.kind}; take a method for such samples, such as el2n."
        )


def _claim(scoring: Scoring, layout: DatasetLayout, held: ExitStack) -> None:
    """Make the run folder this run's own, and keep others out of a local one; called on rank 0 for all.

    Raises:
        ConfigError: it is to go on with what was asked for otherwise.
        FileExistsError: it holds another run.
        FolderInUseError: a job that is at work has it.
    """
    settings, is_local = scoring.settings, not is_remote(scoring.settings.folder)
    if is_local:
        lock = RunLock(settings.folder, what="ted-stream score", lends=True)  # to the surrogates' training
        lock.acquire()
        held.callback(lock.release)
    asked = _asked(scoring, layout)
    if settings.autoresume:
        _refuse_other(settings.folder, asked)
    # Not from load_path: the checkpoint of a given model is none of this run.
    claim_folder(settings, (*LEFTOVERS, *OWN_LEFTOVERS), goes_on=settings.autoresume)
    if is_local:
        for name in (SCORES_FILE, SKIP_LIST_FILE, SCORE_FILE):  # of a run that had come to its end
            (Path(settings.folder) / name).unlink(missing_ok=True)
    write_bytes(join(settings.folder, ASKED_FILE), json.dumps(asked, indent=2).encode())


def _asked(scoring: Scoring, layout: DatasetLayout) -> dict[str, Any]:
    """All that scores hang on, as JSON."""
    config = OmegaConf.to_container(OmegaConf.structured(scoring.settings))
    assert isinstance(config, dict)
    config = {str(name): value for name, value in config.items() if name not in FREE_SETTINGS}
    count = scoring.choice.prune_ratio if _needs_count(scoring) else None
    asked = {
        "method": repr(scoring.method),
        "train": scoring.choice.train,
        "dataset": layout.fingerprint,
        "seeds": seeds_of(scoring),
        "prune_ratio": count,
        **config,
    }
    return json.loads(json.dumps(asked))


def _needs_count(scoring: Scoring) -> bool:
    return isinstance(scoring.method, StaticMethod) and scoring.method.needs_count


def _refuse_other(folder: str, asked: dict[str, Any]) -> None:
    """Refuse to go on with surrogates and passes of another request.

    Raises:
        ConfigError: naming what differs.
    """
    try:
        before = json.loads(read_bytes(join(folder, ASKED_FILE)))
    except FileNotFoundError:
        return
    for name in asked:
        if before.get(name) != asked[name]:
            raise ConfigError(
                f"{name} is {asked[name]}, but the scoring run in {folder} was begun with {before.get(name)}; go on "
                "with that, set autoresume=false and overwrite=true to begin anew, or folder= to another place."
            )
