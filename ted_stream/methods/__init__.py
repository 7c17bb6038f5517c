"""The pruning methods: a file each."""

from ted_stream.methods.composed import Composed
from ted_stream.methods.dynamic_dual import DynamicDUAL
from ted_stream.methods.epsilon_greedy import EpsilonGreedy
from ted_stream.methods.fixed_subset import FixedSubset
from ted_stream.methods.importance_sampling import ImportanceSampling
from ted_stream.methods.infobatch import InfoBatch
from ted_stream.methods.learnability import Learnability
from ted_stream.methods.method import Chosen, Method
from ted_stream.methods.order_dp import OrderDP
from ted_stream.methods.random_pruning import RandomPruning
from ted_stream.methods.rcap import RCAP
from ted_stream.methods.repb import RePB
from ted_stream.methods.scheduled import CorrectedMethod, OwnCountMethod, ScheduledMethod
from ted_stream.methods.seta import SeTa
from ted_stream.methods.ted import TED
from ted_stream.methods.ucb import UCB

__all__ = [
    "METHODS",
    "RCAP",
    "TED",
    "UCB",
    "Chosen",
    "Composed",
    "CorrectedMethod",
    "DynamicDUAL",
    "EpsilonGreedy",
    "FixedSubset",
    "ImportanceSampling",
    "InfoBatch",
    "Learnability",
    "Method",
    "OrderDP",
    "OwnCountMethod",
    "RandomPruning",
    "RePB",
    "ScheduledMethod",
    "SeTa",
]

METHODS: dict[str, type[Method]] = {
    "composed": Composed,
    "dynamic_dual": DynamicDUAL,
    "epsilon_greedy": EpsilonGreedy,
    "fixed_subset": FixedSubset,
    "importance_sampling": ImportanceSampling,
    "infobatch": InfoBatch,
    "learnability": Learnability,
    "order_dp": OrderDP,
    "random": RandomPruning,
    "rcap": RCAP,
    "repb": RePB,
    "seta": SeTa,
    "ted": TED,
    "ucb": UCB,
}
