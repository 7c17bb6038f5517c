"""Contracts that every method and every measure keeps, for those who write their own."""

from ted_stream.testing.contract import check_method
from ted_stream.testing.coverage import check_covered
from ted_stream.testing.measures import Formula, check_measure
from ted_stream.testing.methods import METHOD_CHECKS
from ted_stream.testing.threads import ThreadCommunicator, owned_ids, run_ranks

__all__ = [
    "METHOD_CHECKS",
    "Formula",
    "ThreadCommunicator",
    "check_covered",
    "check_measure",
    "check_method",
    "owned_ids",
    "run_ranks",
]
