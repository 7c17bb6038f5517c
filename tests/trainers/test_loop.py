"""Pruning around a plain loop: it goes on where it was, and refuses what it cannot serve."""

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from loop_runs import (
    EPOCHS,
    GLOBAL_BATCH_SIZE,
    METHODS,
    NUM_SAMPLES,
    features,
    make_loader,
    make_net,
    outcome,
    starts_by_sizes,
    train,
)
from torch import nn
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LambdaLR,
    LinearLR,
    MultiStepLR,
    OneCycleLR,
    SequentialLR,
)
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, TensorDataset

from ted_stream import (
    TED,
    ImportanceSampling,
    InfoBatch,
    PrunedSampler,
    Pruner,
    RandomPruning,
    SeededSamples,
    SkipList,
    read_skip_list,
)
from ted_stream.methods import Method
from ted_stream.skip_list import to_bytes

each_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


def test_the_run_folder_is_that_of_any_run(tmp_path: Path) -> None:
    found = train(METHODS["ted"], str(tmp_path), dropout=0.0)
    for epoch, digest in enumerate(found["digests"]):
        skip_list = read_skip_list(tmp_path / f"skip_lists/ep{epoch:04d}.parquet", digest=digest)
        assert skip_list.num_kept == found["kept"][epoch] == found["forwarded"][epoch]
    assert (tmp_path / "run.json").exists()
    assert (tmp_path / "manifest.parquet").exists()


@pytest.mark.parametrize("name", ["ted", "importance"])
def test_a_skip_list_is_made_into_a_file_once(
    name: str, make_mds: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the run folder and for the readers; those of a list with weights have another file, without them."""
    from ted_stream.engine import engine
    from ted_stream.reading import dataset

    made: list[str] = []

    def counted(skip_list: SkipList) -> bytes:
        made.append(skip_list.digest)
        return to_bytes(skip_list)

    for module in (engine, dataset):
        monkeypatch.setattr(module, "to_bytes", counted)
    digests = train(METHODS[name], str(tmp_path), loader=make_loader(make_mds(NUM_SAMPLES)))["digests"]
    assert len(made) == len(set(made))
    assert len(made) < 2 * EPOCHS if name == "importance" else made == digests


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/x", "."])
def test_a_name_that_leads_out_of_the_folder_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"run_name is '{name}', which is no folder within that of folder='"):
        Pruner(METHODS["ted"], make_net(), make_loader(), epochs=2, folder=tmp_path / "{run_name}", run_name=name)
    assert Pruner(METHODS["ted"], make_net(), make_loader(), epochs=2, folder=tmp_path, run_name=name).run_name == name


def test_what_a_loader_leaves_out_anyway_is_not_saved(tmp_path: Path) -> None:
    for ratio in (0.0, 0.5):
        method = RandomPruning(ratio)
        model = make_net()
        pruner = Pruner(method, model, make_loader(drop_last=True), epochs=EPOCHS, folder=tmp_path / str(ratio))
        with pruner:
            for _ in pruner:
                for x, y in pruner.batches():
                    pruner.loss(F.cross_entropy(model(x), y)).backward()
        full = EPOCHS * (NUM_SAMPLES - NUM_SAMPLES % GLOBAL_BATCH_SIZE)
        forwarded = sum(record.forwarded for record in pruner.records)
        assert (forwarded == full) == (ratio == 0)
        assert pruner.save_ratio == 1 - forwarded / full
        assert json.loads((tmp_path / str(ratio) / "run.json").read_text())["save_ratio"] == pruner.save_ratio


# Going on


# Each way once, by one that measures or one that weighs; the others go the same ways.
QUICK = {("map-style", "ted"), ("streaming", "importance"), ("workers", "infobatch")}
WAYS = [
    pytest.param(method, kind, id=f"{kind}-{name}", marks=[] if (kind, name) in QUICK else pytest.mark.long)
    for name, method in METHODS.items()
    for kind in ("map-style", "streaming", "workers")
]


@pytest.mark.quick("map-style-ted")
@pytest.mark.parametrize(("method", "kind"), WAYS)
def test_goes_on_to_the_bit(method: Method, kind: str, make_mds: Callable[..., str], tmp_path: Path) -> None:
    """From any batch: an epoch's first, one within, its last, and the last of all."""
    data = make_mds(NUM_SAMPLES) if kind == "streaming" else None
    options = {"num_workers": 2, "persistent_workers": True} if kind == "workers" else {}

    def run(name: str, **settings: Any) -> dict[str, Any]:
        return train(method, str(tmp_path / name), loader=make_loader(data, **options), **settings)

    saved: dict[int, dict[str, Any]] = {}

    def save(batch: int, state: Callable[[], dict[str, Any]]) -> None:
        if kind != "workers" or batch in (5, 13, 20):
            saved[batch] = copy.deepcopy(state())

    expected = run("lived", after_batch=save)
    last = max(saved)
    stops = sorted({1, 13, 14, 20, last} & saved.keys()) if kind != "workers" else sorted(saved)
    for batch in stops:
        assert run("lived", resume=saved[batch]) == expected, f"from batch {batch}"


def test_a_state_is_plain_and_every_moment_gives_one(tmp_path: Path) -> None:
    states = []
    train(METHODS["ted"], str(tmp_path), after_batch=lambda batch, state: states.append(state()["pruner"]))
    assert [(state["epoch"], state["done"]) for state in states[:14]] == [*((0, n + 1) for n in range(13)), (1, 1)]
    torch.save(states[5], tmp_path / "state.pt")
    assert torch.load(tmp_path / "state.pt", weights_only=True)["done"] == 6


@pytest.mark.parametrize("workers", [0, 1])
def test_what_draws_between_two_epochs_draws_the_same_again(workers: int, tmp_path: Path) -> None:
    """A run that goes on from an epoch's last batch comes by what follows the epoch, as a test set's loader does."""

    def run(resume: dict[str, Any] | None = None) -> tuple[list[float], dict[str, Any]]:
        model = make_net()
        options: dict[str, Any] = {"num_workers": workers, "persistent_workers": workers > 0}
        pruner = Pruner(METHODS["random"], model, make_loader(**options), epochs=2, folder=tmp_path)
        if resume is not None:
            pruner.load_state_dict(resume)
        draws, saved = [], {}
        with pruner:
            for epoch in pruner:
                for batch, (x, y) in enumerate(pruner.batches(), 1):
                    pruner.loss(F.cross_entropy(model(x), y)).backward()
                    if epoch == 0 and batch == len(pruner.loader):
                        saved = copy.deepcopy(pruner.state_dict())
                    if epoch == 1:
                        draws.append(torch.rand(()).item())
                draws.append(torch.rand(()).item())
        return draws, saved

    torch.manual_seed(5)
    expected, saved = run()
    torch.manual_seed(6)
    assert run(saved)[0] == expected


def test_another_run_does_not_go_on(tmp_path: Path) -> None:
    saved = []
    train(METHODS["ted"], str(tmp_path), after_batch=lambda batch, state: saved.append(state()))
    with pytest.raises(ValueError, match=r"made by TED\(.*but this run has InfoBatch"):
        train(METHODS["infobatch"], str(tmp_path), resume=saved[3])
    with pytest.raises(ValueError, match=r"progress='samples'.*progress='epochs'"):
        train(METHODS["ted"], str(tmp_path), resume=saved[3], pruner_options={"progress": "epochs"})
    dataset = TensorDataset(*features())
    other = DataLoader(dataset, batch_size=4, sampler=PrunedSampler(dataset, seed=3))
    with pytest.raises(ValueError, match=r"middle of epoch 0.*global batch size \(8 and 4\)"):
        train(METHODS["ted"], str(tmp_path), resume=saved[3], loader=other)


@pytest.mark.long
@pytest.mark.parametrize("seeded", [True, False])
@pytest.mark.parametrize("kind", ["map-style", "streaming"])
def test_a_run_goes_on_with_samples_seeded_as_before(
    kind: str, seeded: bool, make_mds: Callable[..., str], tmp_path: Path
) -> None:
    folder = make_mds(NUM_SAMPLES) if kind == "streaming" else ""

    def loader(seeded: bool) -> DataLoader:
        if kind == "streaming":
            from streamed import Streamed

            data = Streamed(local=folder, shuffle=True, batch_size=GLOBAL_BATCH_SIZE, seed_samples=seeded)
            return DataLoader(data, batch_size=GLOBAL_BATCH_SIZE)
        plain = TensorDataset(*features())
        samples = SeededSamples(plain) if seeded else plain
        return DataLoader(samples, batch_size=GLOBAL_BATCH_SIZE, sampler=PrunedSampler(samples, seed=3))

    saved: dict[int, Any] = {}

    def save(batch: int, state: Callable[[], Any]) -> None:
        if batch in (5, 13):  # within an epoch, and at its end
            saved[batch] = copy.deepcopy(state())

    expected = train(METHODS["random"], str(tmp_path), loader=loader(seeded), after_batch=save)
    message = (
        rf"seed_samples={seeded}, but this run has seed_samples={not seeded}.*{'with' if seeded else 'without'} Seed"
    )
    for state in saved.values():
        with pytest.raises(ValueError, match=message):
            train(METHODS["random"], str(tmp_path), loader=loader(not seeded), resume=state)
    mixed = {"allow_other_settings": True}
    train(METHODS["random"], str(tmp_path), loader=loader(not seeded), resume=saved[5], pruner_options=mixed)
    del saved[13]["pruner"]["engine"]["seed_samples"]  # as of an earlier version
    assert train(METHODS["random"], str(tmp_path), loader=loader(seeded), resume=saved[13]) == expected


def test_a_run_does_not_end_before_it_goes_on(tmp_path: Path) -> None:
    saved: dict[int, Any] = {}
    train(METHODS["ted"], str(tmp_path), after_batch=lambda batch, state: saved.setdefault(batch, state()["pruner"]))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()}
    for batch, epochs, message in (
        (max(saved), 3, r"made after 4 epochs and \d+ batches, but the run is to end after 3: .*Let it last as many"),
        (20, 1, r"made after 1 epochs and 7 batches, but the run is to end after 1: "),
    ):
        pruner = Pruner(METHODS["ted"], make_net(), make_loader(), epochs=epochs, folder=tmp_path)
        pruner.load_state_dict(saved[batch])
        with pytest.raises(ValueError, match=message):
            next(iter(pruner))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()} == before


# What loops do


def _pruner(tmp_path: Path, model: nn.Module, method: Method = METHODS["ted"], **options: Any) -> Pruner:
    return Pruner(method, model, make_loader(), epochs=EPOCHS, folder=tmp_path / "run", **options)


def _lists(tmp_path: Path) -> list[SkipList]:
    """Of the epochs so far."""
    return [read_skip_list(path) for path in sorted(tmp_path.glob("run/skip_lists/*.parquet"))]


def test_accumulated_gradients_and_scaled_losses(tmp_path: Path) -> None:
    """A score is that of the batch's own loss, whatever it is divided or multiplied by afterwards."""
    outcomes = []
    for scale in (1.0, 4.0, 1024.0):
        model = make_net(dropout=0.0)
        with _pruner(tmp_path / str(scale), model) as pruner:
            for _ in pruner:
                for x, y in pruner.batches():
                    (pruner.loss(F.cross_entropy(model(x), y)) / scale).backward()
        outcomes.append(outcome(pruner, model)["scores"])
    assert outcomes[1] == pytest.approx(outcomes[0], rel=1e-6)
    assert outcomes[2] == pytest.approx(outcomes[0], rel=1e-6)


def test_a_vector_of_losses_is_their_mean(tmp_path: Path) -> None:
    found = []
    for reduction in ("mean", "none"):
        model = make_net(dropout=0.0)
        with _pruner(tmp_path / reduction, model, ImportanceSampling(0.5, importance="loss")) as pruner:
            for _ in pruner:
                for x, y in pruner.batches():
                    loss = pruner.loss(F.cross_entropy(model(x), y, reduction=reduction))
                    assert loss.ndim == 0
                    loss.backward()
        found.append(outcome(pruner, model)["digests"])
    assert found[0] == found[1]


def test_evaluation_and_other_uses_of_the_model_between_steps(tmp_path: Path) -> None:
    def run(folder: Path, *, evaluates: bool) -> dict[str, Any]:
        model = make_net(dropout=0.0)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        with _pruner(folder, model) as pruner:
            for _ in pruner:
                for x, y in pruner.batches():
                    if evaluates:
                        with torch.no_grad():
                            model(features()[0])
                    loss = pruner.loss(F.cross_entropy(model(x), y))
                    if evaluates:
                        with torch.inference_mode():
                            model.eval()(features()[0][:3])
                            model.train()
                    loss.backward()
                    optimizer.step()
                    optimizer.zero_grad()
                    if evaluates:
                        model(features()[0][:9])  # with gradients, and no loss
                if evaluates:
                    F.cross_entropy(model(features()[0]), features()[1]).backward()
                    optimizer.zero_grad()
        return outcome(pruner, model)

    assert run(tmp_path / "a", evaluates=True) == run(tmp_path / "b", evaluates=False)


@pytest.mark.parametrize("method", [METHODS["ted"], METHODS["importance"]], ids=["ted", "importance"])
def test_a_closure_counts_with_its_last_pass(method: Method, tmp_path: Path) -> None:
    """As SAM does: the second pass, at other weights, is the one that the update is made of."""

    def run(folder: Path, passes: int) -> dict[str, Any]:
        model = make_net(dropout=0.0)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        with _pruner(folder, model, method) as pruner:
            for _ in pruner:
                for x, y in pruner.batches():
                    for _ in range(passes):
                        optimizer.zero_grad()
                        pruner.loss(F.cross_entropy(model(x), y)).backward()
                    optimizer.step()
        return outcome(pruner, model)

    assert run(tmp_path / "two", 2) == run(tmp_path / "one", 1)


def test_a_forward_pass_that_failed_is_made_again(tmp_path: Path) -> None:
    model = make_net(dropout=0.0)
    fails = [True]

    def fail(module: nn.Module, args: Any) -> None:
        if fails.pop():
            raise torch.OutOfMemoryError("no memory")

    with _pruner(tmp_path, model, METHODS["importance"]) as pruner:
        for _ in pruner:
            for x, y in pruner.batches():
                fails.append(True)
                hook = model.head.register_forward_pre_hook(fail)
                with pytest.raises(torch.OutOfMemoryError):
                    model(x)
                hook.remove()
                pruner.loss(F.cross_entropy(model(x), y)).backward()
    assert len(pruner.records) == EPOCHS


def test_weights_are_those_of_the_list(tmp_path: Path) -> None:
    """Against losses that are weighted one by one."""
    model = make_net(dropout=0.0)
    weighted = 0
    with _pruner(tmp_path, model, METHODS["importance"]) as pruner:
        for _ in pruner:
            assert pruner.engine.active is not None
            weights = pruner.engine.active.weights_by_id()
            for x, y in pruner.batches():
                pruner.loss(F.cross_entropy(model(x), y)).backward()
                if weights is not None:
                    other = make_net(dropout=0.0)
                    own = torch.from_numpy(weights[pruner.engine.step.ids.numpy()]).double()
                    (own * F.cross_entropy(other(x), y, reduction="none")).mean().backward()
                    for found, expected in zip(model.parameters(), other.parameters(), strict=True):
                        torch.testing.assert_close(found.grad, expected.grad)
                    weighted += 1
                model.zero_grad()
    assert weighted > 10


@pytest.mark.long
@pytest.mark.parametrize("in_place", [False, True])
def test_a_compiled_model(in_place: bool, tmp_path: Path) -> None:
    torch.compiler.reset()

    def compiled(model: nn.Module) -> Any:
        if in_place:
            model.compile(backend="aot_eager")
            return model
        return torch.compile(model, backend="aot_eager")

    expected = train(METHODS["importance"], str(tmp_path / "plain"), dropout=0.0)
    found = train(METHODS["importance"], str(tmp_path / "compiled"), wrap=compiled, dropout=0.0)
    assert found["digests"] == expected["digests"]
    assert found["weights"] == pytest.approx(expected["weights"], rel=1e-9)


# The learning rate


BATCHES = math.ceil(NUM_SAMPLES / GLOBAL_BATCH_SIZE)
SCHEDULERS: dict[str, tuple[Callable[[Any, int], Any], Callable[[float, int], float]]] = {
    "cosine": (
        lambda optimizer, steps: CosineAnnealingLR(optimizer, steps),
        lambda at, steps: 0.5 * (1 + math.cos(math.pi * at / steps)),
    ),
    "linear": (
        lambda optimizer, steps: LinearLR(optimizer, 1.0, 0.1, steps),
        lambda at, steps: 1 - 0.9 * at / steps,
    ),
    "linear with warm-up": (
        lambda optimizer, steps: LambdaLR(optimizer, lambda at: min(at / 10, (steps - at) / (steps - 10))),
        lambda at, steps: min(at / 10, (steps - at) / (steps - 10)),
    ),
    "milestones": (
        lambda optimizer, steps: MultiStepLR(optimizer, [15, 40]),
        lambda at, steps: 0.1 ** ((at >= 15) + (at >= 40)),
    ),
}


@pytest.mark.parametrize("progress", ["epochs", "samples", "sizes"])
@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_rates_are_those_of_the_full_run_at_every_step(
    name: str, accumulation: int, progress: str, tmp_path: Path
) -> None:
    build, closed_form = SCHEDULERS[name]
    model = make_net()
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    full = math.ceil(BATCHES / accumulation)
    sizes = np.random.default_rng(0).integers(1, 500, NUM_SAMPLES)
    pruner = _pruner(tmp_path, model, progress=sizes if progress == "sizes" else progress)
    scheduler = pruner.stretch(build(optimizer, EPOCHS * full), accumulation=accumulation)
    with pruner:
        for epoch in pruner:
            batches = len(pruner.loader)
            steps = math.ceil(batches / accumulation)
            kept = pruner.engine.plan.forecast({})
            starts = [0.0] * (EPOCHS + 1)
            if progress == "sizes":
                known = [int(sizes[skip_list.kept_ids()].sum()) for skip_list in _lists(tmp_path)]
                starts = starts_by_sizes(known, [count * float(sizes.mean()) for count in kept], EPOCHS * full)
            for batch, (x, y) in enumerate(pruner.batches(), 1):
                pruner.loss(F.cross_entropy(model(x), y)).backward()
                if batch % accumulation and batch < batches:
                    continue
                optimizer.step()
                optimizer.zero_grad()
                scheduler.step()
                within = math.ceil(batch / accumulation) / steps
                if progress == "epochs":
                    position = full * (epoch + within)
                elif progress == "sizes":
                    position = starts[epoch] + (starts[epoch + 1] - starts[epoch]) * within
                else:
                    position = EPOCHS * full * (sum(kept[:epoch]) + kept[epoch] * within) / sum(kept)
                expected = closed_form(position, EPOCHS * full)
                assert optimizer.param_groups[0]["lr"] == pytest.approx(expected, abs=1e-12)


def _rates(pruner: Pruner, model: nn.Module, optimizer: torch.optim.Optimizer, scheduler: Any) -> list[float]:
    """Train, and tell the rate after every step."""
    rates = []
    with pruner:
        for _ in pruner:
            for x, y in pruner.batches():
                pruner.loss(F.cross_entropy(model(x), y)).backward()
                optimizer.step()
                scheduler.step()
                rates.append(optimizer.param_groups[0]["lr"])
    return rates


def test_one_cycle_ends_where_it_should(tmp_path: Path) -> None:
    model = make_net()
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    pruner = _pruner(tmp_path, model)
    cycle = OneCycleLR(optimizer, 0.3, total_steps=EPOCHS * BATCHES)
    scheduler = pruner.stretch(cycle)
    rates = _rates(pruner, model, optimizer, scheduler)
    assert max(rates) > 0.25
    assert len(rates) < 0.8 * EPOCHS * BATCHES
    full = torch.optim.SGD(model.parameters(), 1.0)
    expected = OneCycleLR(full, 0.3, total_steps=EPOCHS * BATCHES)
    for _ in range(EPOCHS * BATCHES):
        full.step()
        expected.step()
    assert rates[-1] == pytest.approx(expected.get_last_lr()[0])
    assert scheduler.state_dict()["last_epoch"] == cycle.last_epoch == EPOCHS * BATCHES


def test_a_scheduler_that_knows_only_the_rate_before(tmp_path: Path) -> None:
    model = make_net()
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    pruner = _pruner(tmp_path, model)
    parts: list[Any] = [LinearLR(optimizer, 0.1, 1.0, 10), CosineAnnealingLR(optimizer, EPOCHS * BATCHES - 10)]
    scheduler = pruner.stretch(SequentialLR(optimizer, parts, [10]))
    _rates(pruner, model, optimizer, scheduler)
    assert scheduler.last_epoch == EPOCHS * BATCHES
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)


def test_full_epochs_are_to_the_bit_those_without_pruning(tmp_path: Path) -> None:
    def run(stretches: bool) -> list[float]:
        model = make_net()
        optimizer = torch.optim.SGD(model.parameters(), 1.0)
        pruner = _pruner(tmp_path / str(stretches), model, TED(0.0))
        scheduler: Any = CosineAnnealingLR(optimizer, EPOCHS * BATCHES)
        if stretches:
            scheduler = pruner.stretch(scheduler)
        return _rates(pruner, model, optimizer, scheduler)

    assert run(True) == run(False)


# Refused


def test_arguments(tmp_path: Path) -> None:
    model, loader = make_net(), make_loader()
    wrong: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (TypeError, "method is 0.7", {"method": 0.7}),
        (TypeError, "model is a function", {"model": lambda x: x}),
        (ValueError, "epochs is 0", {"epochs": 0}),
        (TypeError, "epochs is 1.5", {"epochs": 1.5}),
        (ValueError, "progress is 'steps'", {"progress": "steps"}),
        (ValueError, "has a count of its own", {"progress": "samples", "method": InfoBatch(0.5)}),
        (ValueError, "folder is ''", {"folder": ""}),
        (ValueError, "{run_name} is the only field that is known", {"folder": "runs/{epoch}"}),
        (TypeError, "output_layer is 3", {"output_layer": 3}),
        (ValueError, "output_layer is ''", {"output_layer": ""}),
        (TypeError, "seed is 'a'", {"seed": "a"}),
        (ValueError, "list over a NoneType", {"loader": [1, 2]}),
    ]
    for error, message, arguments in wrong:
        settings = {"method": TED(0.5), "model": model, "loader": loader, "epochs": 3, "folder": tmp_path} | arguments
        with pytest.raises(error, match=message):
            Pruner(settings.pop("method"), settings.pop("model"), settings.pop("loader"), **settings)


def test_loaders_that_would_give_scores_to_the_wrong_samples() -> None:
    dataset = TensorDataset(*features())
    sharded = DistributedSampler(dataset, 2, 0)
    for loader in (
        DataLoader(dataset, batch_size=8, shuffle=True),
        DataLoader(dataset, batch_size=8, sampler=sharded),
        DataLoader(dataset, batch_sampler=BatchSampler(PrunedSampler(dataset), 8, False)),
    ):
        with pytest.raises(ValueError, match="cannot be pruned"):
            Pruner(TED(0.5), make_net(), loader, epochs=3)
    twice = DataLoader(dataset, batch_size=8, sampler=PrunedSampler(dataset, 2, 0))
    with pytest.raises(ValueError, match=r"rank 0 of 2, but this is rank 0 of 1"):
        Pruner(TED(0.5), make_net(), twice, epochs=3)


def _use(pruner: Pruner, model: nn.Module, *, wrong: str) -> None:
    for _ in pruner:
        for x, y in pruner.batches():
            if wrong == "no loss":
                F.cross_entropy(model(x), y).backward()
            elif wrong == "no backward":
                pruner.loss(F.cross_entropy(model(x), y))
            elif wrong == "another model":
                pruner.loss(F.cross_entropy(make_net()(x), y)).backward()
            elif wrong == "twice":
                loss = F.cross_entropy(model(x), y)
                (pruner.loss(loss) + pruner.loss(loss)).backward()
            elif wrong == "a number":
                pruner.loss(F.cross_entropy(model(x), y).item())  # pyright: ignore[reportArgumentType]
            elif wrong == "a part":
                pruner.loss(F.cross_entropy(model(x[:3]), y[:3])).backward()
            elif wrong == "no gradient":
                with torch.no_grad():
                    pruner.loss(F.cross_entropy(model(x), y))
            else:
                pruner.loss(F.cross_entropy(model(x), y)).backward()
                if wrong == "an epoch left early":
                    break
                if wrong == "batches twice":
                    next(iter(pruner.batches()))


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ("no loss", RuntimeError, "Batch 0 of epoch 0 is left, but its last forward pass has no loss"),
        ("no backward", RuntimeError, "Batch 0 of epoch 0 is left, but its backward pass has not ended"),
        ("another model", RuntimeError, "without a forward pass of the whole batch"),
        ("twice", RuntimeError, "for the second time after one"),
        ("a number", TypeError, "loss is a float, but must be a tensor"),
        ("a part", RuntimeError, "without a forward pass of the whole batch"),
        ("no gradient", RuntimeError, "without a forward pass of the whole batch, with gradients"),
        ("an epoch left early", RuntimeError, "Epoch 0 ended after 0 of its 13 batches"),
        ("batches twice", RuntimeError, r"batches\(\) belongs into the loop"),
    ],
)
def test_wrong_use(wrong: str, error: type[Exception], message: str, tmp_path: Path) -> None:
    model = make_net()
    pruner = _pruner(tmp_path, model)
    with pytest.raises(error, match=message), pruner:
        _use(pruner, model, wrong=wrong)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert len(pruner.loader) == BATCHES  # the dataset is whole again
    with pytest.raises(RuntimeError, match="A Pruner is one run"):
        next(iter(pruner))
    with pytest.raises(RuntimeError, match="outside of a batch"):
        pruner.loss(torch.zeros(()))


def test_leaving_early_ends_the_run(tmp_path: Path) -> None:
    model = make_net()
    with _pruner(tmp_path, model) as pruner:
        for epoch in pruner:
            for x, y in pruner.batches():
                pruner.loss(F.cross_entropy(model(x), y)).backward()
            if epoch == 2:
                break
    assert (tmp_path / "run/manifest.parquet").exists()
    assert len(pruner.loader) == BATCHES


def test_a_state_between_a_loss_and_its_backward_pass(tmp_path: Path) -> None:
    model = make_net()
    with _pruner(tmp_path, model) as pruner:
        for _ in pruner:
            for x, y in pruner.batches():
                loss = pruner.loss(F.cross_entropy(model(x), y))
                with pytest.raises(RuntimeError, match="backward pass has not ended"):
                    pruner.state_dict()
                loss.backward()
                with pytest.raises(RuntimeError, match="before the loop"):
                    pruner.load_state_dict(pruner.state_dict())
                break
            break
