"""Every registered method keeps the contract, in choices and in whole runs."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ted_stream.methods import METHODS, TED, ImportanceSampling, InfoBatch, Method, RandomPruning
from ted_stream.testing import METHOD_CHECKS, check_covered
from ted_stream.testing.contract_runs import LONG_RUN_CHECKS, RUN_CHECKS, contract_runs, long_contract_runs
from ted_stream.testing.runs import load_result, start_runs, steps_of

# Settings of every registered method that take its ways between them; whole runs are made of the first ones.
EXAMPLES: dict[str, tuple[Method, ...]] = {
    "importance_sampling": (
        ImportanceSampling(0.6),
        ImportanceSampling(0.5, importance="loss", schedule="constant", alpha=0.0, floor=1e-3),
        ImportanceSampling(0.3, importance="mask_gradient", schedule="cosine", annealing=0.0, floor=2.0),
    ),
    "infobatch": (InfoBatch(0.5), InfoBatch(0.7, annealing=0.0), InfoBatch(0.0)),
    "random": (RandomPruning(0.6), RandomPruning(0.5, schedule="constant", annealing=0.0, loss_correction=False)),
    "ted": (
        TED(0.6),
        TED(0.6, choice="sampled", floor=0.1, relative=True, temperature=2.0, beta=0.3, site="output"),
        TED(0.9, importance="loss", schedule="linear", alpha=0.5, annealing=0.3),
    ),
}
EVERY = [method for name in sorted(EXAMPLES) for method in EXAMPLES[name]]
SAMPLED = {"ted_sampled": TED(0.6, choice="sampled", relative=True)}
RUN = {name: examples[0] for name, examples in EXAMPLES.items()} | SAMPLED


def test_every_method_has_examples() -> None:
    check_covered(METHODS, EXAMPLES)


def test_a_method_without_an_example_fails_the_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    class Forgotten(RandomPruning):
        pass

    monkeypatch.setitem(METHODS, "forgotten", Forgotten)
    with pytest.raises(AssertionError, match="forgotten"):
        test_every_method_has_examples()
    monkeypatch.setitem(EXAMPLES, "forgotten", (RandomPruning(0.5),))
    with pytest.raises(AssertionError, match=r"forgotten: RandomPruning.* is no Forgotten"):
        test_every_method_has_examples()


@pytest.mark.parametrize("check", METHOD_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("method", EVERY, ids=repr)
def test_keeps(method: Method, check: Callable[[Method], None]) -> None:
    check(method)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs")
    start_runs([run for name, method in RUN.items() for run in contract_runs(name, method)], out)
    return out


@pytest.mark.composer
@pytest.mark.parametrize("check", RUN_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", RUN)
def test_keeps_in_runs(name: str, check: Callable[[Method, Path, str], None], runs: Path) -> None:
    check(RUN[name], runs, name)


@pytest.mark.composer
def test_epochs_of_infobatch_end_with_what_is_left(runs: Path) -> None:
    """Every kept sample once, in full batches and a partial last one; the official sampler never ends an epoch."""
    records, steps = load_result(runs, "infobatch-one")["records"], steps_of(runs, "infobatch-one", 0)
    for epoch, record in enumerate(records):
        sizes = [len(ids) for (at, _), (ids, _) in sorted(steps.items()) if at == epoch]
        whole, rest = divmod(record["kept"], 8)
        assert sizes == [8] * whole + [rest] * (rest > 0)
    assert any(record["kept"] % 8 for record in records)


@pytest.fixture(scope="module")
def long_runs(tmp_path_factory: pytest.TempPathFactory, make_mds: Callable[..., str]) -> Path:
    out, data = tmp_path_factory.mktemp("long_runs"), make_mds(61)
    start_runs(
        [run for name, method in RUN.items() for run in long_contract_runs(name, method, data)], out, timeout=1800
    )
    return out


@pytest.mark.long
@pytest.mark.composer
@pytest.mark.parametrize("check", LONG_RUN_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", RUN)
def test_keeps_in_long_runs(name: str, check: Callable[[Method, Path, str], None], long_runs: Path) -> None:
    check(RUN[name], long_runs, name)


def _add_to_scores(folder: Path) -> None:
    result = torch.load(folder / "rank0.pt", weights_only=False)
    torch.save(result | {"scores": result["scores"] + 1}, folder / "rank0.pt")


def _nudge_a_weight(folder: Path) -> None:
    result = torch.load(folder / "rank0.pt", weights_only=False)
    next(iter(result["weights"].values())).flat[0] += 1e-6
    torch.save(result, folder / "rank0.pt")


def _forget_a_batch(folder: Path) -> None:
    lines = (folder / "steps1.jsonl").read_text().splitlines(keepends=True)
    (folder / "steps1.jsonl").write_text("".join(lines[:-1]))


TAMPERED: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "resumes_to_the_bit": ("killed", _nudge_a_weight, "differs from that of"),
    "trains_with_workers_as_without": ("workers", _forget_a_batch, "in another order"),
    "trains_on_two_ranks_as_on_one": ("ddp", _nudge_a_weight, "Not equal to tolerance"),
    "trains_in_microbatches_as_whole": ("microbatches", _add_to_scores, "Not equal to tolerance"),
    "trains_sharded_as_replicated": ("fsdp", _add_to_scores, "Not equal to tolerance"),
    "lists_follow_from_measurements": ("lived", _add_to_scores, "scores of .* are others"),
    "lists_follow_from_measurements, batches": ("lived", _forget_a_batch, "did not train on what it kept"),
}


@pytest.mark.composer
@pytest.mark.parametrize("name", TAMPERED)
def test_what_is_wrong_in_a_run_is_found(name: str, runs: Path, tmp_path: Path) -> None:
    """The comparisons, of results that something was done to."""
    what, tamper, words = TAMPERED[name]
    (check,) = [check for check in RUN_CHECKS if check.__name__ == name.partition(",")[0]]
    for folder in runs.glob("ted-*"):
        shutil.copytree(folder, tmp_path / folder.name)
    check(RUN["ted"], tmp_path, "ted")
    tamper(tmp_path / f"ted-{what}")
    with pytest.raises(AssertionError, match=words):
        check(RUN["ted"], tmp_path, "ted")
