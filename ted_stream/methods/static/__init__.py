"""The static methods: score a dataset once, train on a fixed subset of it later."""

from ted_stream.methods.static.aum import AUM
from ted_stream.methods.static.cd import CD
from ted_stream.methods.static.craig import CRAIG
from ted_stream.methods.static.deepfool import DeepFool
from ted_stream.methods.static.dp import DP
from ted_stream.methods.static.dual import DUAL
from ted_stream.methods.static.el2n import EL2N
from ted_stream.methods.static.entropy import Entropy
from ted_stream.methods.static.forgetting import Forgetting
from ted_stream.methods.static.glister import GLISTER
from ted_stream.methods.static.grand import GraNd
from ted_stream.methods.static.ifd import IFD
from ted_stream.methods.static.least_confidence import LeastConfidence
from ted_stream.methods.static.margin import Margin
from ted_stream.methods.static.reference_loss import ReferenceLoss
from ted_stream.methods.static.static_method import Recorded, Scored, ScoredBatch, StaticMethod
from ted_stream.methods.static.subset import choose_subset
from ted_stream.methods.static.tdds import TDDS
from ted_stream.methods.static.teds import TEDS
from ted_stream.methods.static.trajectory import TrajectoryScore
from ted_stream.methods.static.uniform import Uniform

__all__ = [
    "AUM",
    "CD",
    "CRAIG",
    "DP",
    "DUAL",
    "EL2N",
    "GLISTER",
    "IFD",
    "STATIC_METHODS",
    "TDDS",
    "TEDS",
    "DeepFool",
    "Entropy",
    "Forgetting",
    "GraNd",
    "LeastConfidence",
    "Margin",
    "Recorded",
    "ReferenceLoss",
    "Scored",
    "ScoredBatch",
    "StaticMethod",
    "TrajectoryScore",
    "Uniform",
    "choose_subset",
]

STATIC_METHODS: dict[str, type[StaticMethod] | type[TrajectoryScore]] = {
    "aum": AUM,
    "cd": CD,
    "craig": CRAIG,
    "deepfool": DeepFool,
    "dp": DP,
    "dual": DUAL,
    "el2n": EL2N,
    "entropy": Entropy,
    "forgetting": Forgetting,
    "glister": GLISTER,
    "grand": GraNd,
    "ifd": IFD,
    "least_confidence": LeastConfidence,
    "margin": Margin,
    "reference_loss": ReferenceLoss,
    "tdds": TDDS,
    "teds": TEDS,
    "uniform": Uniform,
}
