"""Which whole runs show that a method keeps its contract in a host."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ted_stream.methods import Method
from ted_stream.testing.runs import Run, described

__all__ = [
    "DEATHS",
    "EPOCHS",
    "EVEN",
    "Death",
    "contract_runs",
    "long_contract_runs",
    "long_deaths",
    "other_ways",
    "run_name",
]

EPOCHS = 4
EVEN, _ODD = 64, 61  # samples: shared out among two ranks evenly, and not


@dataclass(frozen=True)
class Death:
    """A run that is killed, once or several times, and goes on from its checkpoints each time.

    Args:
        like: the run that it must end as.
        interval: between checkpoints.
        kills: where it dies (see :class:`Run`), in this order.
        parallelism: of its own, if it is not that of the run that it must end as.
    """

    like: str
    interval: str
    kills: Sequence[dict[str, Any]]
    parallelism: str | None = None


_OTHER_WAYS: dict[str, tuple[str, ...]] = {
    "composer": ("microbatches", "workers", "fsdp"),
    "loop": ("workers", "fsdp"),
    "huggingface": ("workers",),
}

# In every host: half of a list is written, in the middle of a step, and at the boundary after the choice.
DEATHS: dict[str, Death] = {
    "killed": Death(
        "lived",
        "3ba",
        (
            {"rank": 0, "event": "writing", "epoch": 1},
            {"rank": 1, "event": "after_backward", "epoch": 2, "batch": 1},
            {"rank": 1, "event": "selected", "epoch": 3},
        ),
    ),
}
_AT_BOUNDARY: dict[str, Death] = {
    "killed-choosing": Death("lived", "1ep", ({"rank": 1, "event": "selected", "epoch": 2},)),
}
_STREAMING: dict[str, Death] = {
    "killed-streaming": Death(
        "lived-streaming", "2ba", ({"rank": 1, "event": "after_backward", "epoch": 2, "batch": 1},)
    ),
}
_LONG_DEATHS: dict[str, dict[str, Death]] = {
    "composer": {
        "killed-checkpointing": Death(
            "lived", "1ba", ({"rank": 0, "event": "batch_checkpoint", "epoch": 1, "batch": 2},)
        ),
        "killed-full": Death("lived-sharding", "2ba", ({"rank": 0, "event": "batch_end", "epoch": 1, "batch": 3},)),
        "killed-sharded": Death(
            "lived-sharding",
            "1ba",
            ({"rank": 1, "event": "before_forward", "epoch": 2, "batch": 2},),
            parallelism="sharded",
        ),
    },
    "loop": {
        "killed-full": Death(
            "lived-sharding", "2ba", ({"rank": 0, "event": "after_backward", "epoch": 1, "batch": 3},)
        ),
    },
    "huggingface": {},
}


def long_deaths(host: str) -> dict[str, Death]:
    """Of :func:`long_contract_runs`."""
    return _AT_BOUNDARY | _STREAMING | _LONG_DEATHS[host]


def other_ways(host: str) -> tuple[str, ...]:
    """The ways to train that must come to what the plain one comes to, where the host has them.

    Accumulating gradients over several batches of the loader, as a loop and Hugging Face do, is no such way: an epoch's
    last step may have fewer.
    """
    return _OTHER_WAYS[host]


def run_name(name: str, host: str) -> str:
    """What the names of the runs in a host begin with."""
    return f"{name}-{host}"


def contract_runs(name: str, method: Method, host: str) -> list[Run]:
    """The runs that :func:`~ted_stream.testing.contract_checks.run_checks` compares.

    Args:
        name: what their names begin with, before the host.
        method: with settings that prune from the second epoch on at the latest.
        host: that trains.
    """
    lived = _lived(name, method, host)
    ddp = replace(lived, name=f"{run_name(name, host)}-ddp", num_samples=EVEN, dropout=0.0, double=True)
    settings: dict[str, dict[str, Any]] = {
        "microbatches": {"ranks": 1, "microbatch_size": 3},
        "workers": {"workers": 2},
        "fsdp": {"parallelism": "full"},
    }
    return [
        replace(ddp, name=f"{run_name(name, host)}-one", ranks=1),
        ddp,
        *(replace(ddp, name=f"{run_name(name, host)}-{way}", **settings[way]) for way in other_ways(host)),
        lived,
        *_killed(name, host, [lived], DEATHS),
    ]


def long_contract_runs(name: str, method: Method, data: str, host: str) -> list[Run]:
    """More of them, for :func:`~ted_stream.testing.contract_checks.long_run_checks`.

    Args:
        name: what their names begin with, before the host.
        method: with settings that prune from the second epoch on at the latest.
        data: folder of a streaming dataset (see :class:`Run`).
        host: that trains.
    """
    lived = _lived(name, method, host)
    begin = run_name(name, host)
    others = [lived, replace(lived, name=f"{begin}-lived-streaming", data=data, workers=2)]
    if "fsdp" in other_ways(host):
        others.append(replace(lived, name=f"{begin}-lived-sharding", parallelism="full", workers=2))
    return [*others, *_killed(name, host, others, long_deaths(host))]


def _lived(name: str, method: Method, host: str) -> Run:
    settings: dict[str, Any] = described(method)
    name = f"{run_name(name, host)}-lived"
    return Run(name=name, host=host, epochs=EPOCHS, num_samples=_ODD, dropout=0.2, **settings)


def _killed(name: str, host: str, lived: list[Run], deaths: Mapping[str, Death]) -> list[Run]:
    by_name = {run.name: run for run in lived}
    begin, runs = run_name(name, host), []
    for what, death in deaths.items():
        like = by_name[f"{begin}-{death.like}"]
        again = replace(like, name=f"{begin}-{what}", save_interval=death.interval)
        again = replace(again, parallelism=death.parallelism or like.parallelism)
        runs += [*(replace(again, kill=kill) for kill in death.kills), again]
    return runs
