"""Every registered method keeps the contract, in choices and in whole runs in every host."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from method_examples import EXAMPLES, RUN

from ted_stream.methods import METHODS, Method, RandomPruning
from ted_stream.testing import METHOD_CHECKS, check_covered, check_method
from ted_stream.testing import runs as runs_module
from ted_stream.testing.contract import checked_hosts
from ted_stream.testing.contract_checks import HOST_CHECKS, run_checks
from ted_stream.testing.contract_runs import contract_runs, run_name
from ted_stream.testing.methods import chooses_alike_on_any_number_of_ranks, remembers_nothing
from ted_stream.testing.runs import Run, installed_hosts, load_result, start_runs, steps_of

HOSTS = installed_hosts()
FIRST, *OTHERS = HOSTS
# Whole runs of the others, and in every host, are long trials.
QUICK = ("ted", FIRST)


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


CHECKED = ("infobatch", 0)
KEEPS = [
    pytest.param(
        example,
        check,
        id=f"{example!r}-{check.__name__}",
        # These take longer than all other checks together.
        marks=[pytest.mark.long]
        if (check is remembers_nothing and at)
        or (check is chooses_alike_on_any_number_of_ranks and (name, at) != CHECKED)
        else [],
    )
    for name in sorted(EXAMPLES)
    for at, example in enumerate(EXAMPLES[name])
    for check in METHOD_CHECKS
]


@pytest.mark.parametrize(("method", "check"), KEEPS)
def test_keeps(method: Method, check: Callable[[Method], None]) -> None:
    check(method)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs")
    name, host = QUICK
    start_runs(contract_runs(name, RUN[name], host), out)
    return out


@pytest.mark.parametrize("check", run_checks(FIRST), ids=lambda check: check.__name__)
def test_keeps_in_runs(check: Callable[[Method, Path, str], None], runs: Path) -> None:
    name, host = QUICK
    check(RUN[name], runs, run_name(name, host))


@pytest.fixture(scope="module")
def all_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("all_runs")
    start_runs(
        [run for name in RUN for host in HOSTS for run in contract_runs(name, RUN[name], host)],
        out,
        timeout=3600,
    )
    return out


@pytest.mark.long
@pytest.mark.parametrize("name", RUN)
def test_keeps_in_runs_of_every_host(name: str, all_runs: Path) -> None:
    for host in HOSTS:
        for check in run_checks(host):
            check(RUN[name], all_runs, run_name(name, host))
    for check in HOST_CHECKS:
        check(RUN[name], all_runs, name, HOSTS)


@pytest.mark.long
@pytest.mark.parametrize("host", HOSTS)
def test_epochs_of_infobatch_end_with_what_is_left(host: str, all_runs: Path) -> None:
    """Every kept sample once, in full batches and a partial last one; the official sampler never ends an epoch."""
    one = f"{run_name('infobatch', host)}-one"
    records, steps = load_result(all_runs, one)["records"], steps_of(all_runs, one, 0)
    for epoch, record in enumerate(records):
        sizes = [len(ids) for (at, _), (ids, _) in sorted(steps.items()) if at == epoch]
        whole, rest = divmod(record["kept"], 8)
        assert sizes == [8] * whole + [rest] * (rest > 0)
    assert any(record["kept"] % 8 for record in records)


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
CHECKS = {check.__name__: check for check in run_checks(FIRST)}


@pytest.mark.parametrize("name", [name for name in TAMPERED if name.partition(",")[0] in CHECKS])
def test_what_is_wrong_in_a_run_is_found(name: str, runs: Path, tmp_path: Path) -> None:
    """The comparisons, of results that something was done to."""
    what, tamper, words = TAMPERED[name]
    check, begin = CHECKS[name.partition(",")[0]], run_name("ted", FIRST)
    for folder in runs.glob(f"{begin}-*"):
        shutil.copytree(folder, tmp_path / folder.name)
    check(RUN["ted"], tmp_path, begin)
    tamper(tmp_path / f"{begin}-{what}")
    with pytest.raises(AssertionError, match=words):
        check(RUN["ted"], tmp_path, begin)


def _keep_another(folder: Path) -> None:
    result = torch.load(folder / "rank0.pt", weights_only=False)
    result["records"][-1]["digest"] = "0"
    torch.save(result, folder / "rank0.pt")


OVER_HOSTS: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "a weight": ("one", _nudge_a_weight, "differs from that of"),
    "a score": ("ddp", _add_to_scores, "the scores of .* differ"),
    "a list": ("one", _keep_another, "the records of .* are not those"),
    "a batch": ("ddp", _forget_a_batch, "in another order"),
}


@pytest.mark.long
@pytest.mark.parametrize("what", OVER_HOSTS)
@pytest.mark.parametrize("host", OTHERS)
def test_what_differs_over_hosts_is_found(host: str, what: str, all_runs: Path, tmp_path: Path) -> None:
    (check,) = HOST_CHECKS
    for folder in all_runs.glob("ted-*"):
        shutil.copytree(folder, tmp_path / folder.name)
    run, tamper, words = OVER_HOSTS[what]
    tamper(tmp_path / f"{run_name('ted', host)}-{run}")
    with pytest.raises(AssertionError, match=words):
        check(RUN["ted"], tmp_path, "ted", HOSTS)


# Which hosts


def test_hosts_that_are_not_installed_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """And named. The loop needs nothing."""
    monkeypatch.setattr(runs_module, "find_spec", lambda package: None)
    assert installed_hosts() == ("loop",)
    with pytest.warns(UserWarning, match="goes unchecked") as found:
        assert checked_hosts(None) == ("loop",)
    words = [str(warning.message) for warning in found]
    assert len(words) == 2
    assert all(f"no runs in {host}" in text for host, text in zip(("composer", "huggingface"), words, strict=True))
    with pytest.raises(ValueError, match=r"'huggingface', which is not installed \(transformers, accelerate\)"):
        check_method(RandomPruning(0.5), hosts=["loop", "huggingface"])


def test_hosts_that_are_not_known_are_refused() -> None:
    with pytest.raises(ValueError, match="'lightning', which is none of composer, loop, huggingface"):
        check_method(RandomPruning(0.5), hosts=["lightning"])
    with pytest.raises(ValueError, match="at least one"):
        check_method(RandomPruning(0.5), hosts=[])


@pytest.mark.parametrize(
    "settings",
    [
        {"host": "lightning"},
        {"host": "loop", "microbatch_size": 3},
        {"host": "loop", "parallelism": "sharded"},
        {"host": "huggingface", "parallelism": "full"},
        {"host": "huggingface", "kill": {"rank": 0, "event": "batch_end", "epoch": 0, "batch": 1}},
    ],
    ids=str,
)
def test_runs_that_a_host_does_not_have_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"host|no (microbatch_size|parallelism|kill)="):
        Run(name="run", method="TED(0.5)", **settings)
