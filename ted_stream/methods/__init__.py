"""The pruning methods: a file each."""

from ted_stream.methods.importance_sampling import ImportanceSampling
from ted_stream.methods.infobatch import InfoBatch
from ted_stream.methods.method import Chosen, Method
from ted_stream.methods.random_pruning import RandomPruning
from ted_stream.methods.scheduled import CorrectedMethod, ScheduledMethod
from ted_stream.methods.ted import TED

__all__ = [
    "METHODS",
    "TED",
    "Chosen",
    "CorrectedMethod",
    "ImportanceSampling",
    "InfoBatch",
    "Method",
    "RandomPruning",
    "ScheduledMethod",
]

METHODS: dict[str, type[Method]] = {
    "importance_sampling": ImportanceSampling,
    "infobatch": InfoBatch,
    "random": RandomPruning,
    "ted": TED,
}
