"""Contracts that every method, every measure and every static method keeps, for those who write their own."""

from ted_stream.testing.contract import check_method
from ted_stream.testing.coverage import check_covered
from ted_stream.testing.measures import Formula, check_measure
from ted_stream.testing.methods import METHOD_CHECKS
from ted_stream.testing.static_methods import STATIC_METHOD_CHECKS, check_static_method
from ted_stream.testing.threads import ThreadCommunicator, owned_ids, run_ranks

__all__ = [
    "METHOD_CHECKS",
    "STATIC_METHOD_CHECKS",
    "Formula",
    "ThreadCommunicator",
    "check_covered",
    "check_measure",
    "check_method",
    "check_static_method",
    "owned_ids",
    "run_ranks",
]
