import threading

import numpy as np
import pytest

from ted_stream.testing import ThreadCommunicator, owned_ids, run_ranks


def test_collectives_mean_what_the_protocol_says():
    def work(comm: ThreadCommunicator):
        me = comm.rank
        total = comm.all_reduce_sum(np.array([me, 1], np.int64))
        sent = [np.full(me + to, 10 * me + to, np.int64) for to in range(3)]
        received = comm.all_to_all(sent)
        gathered = comm.all_gather(np.arange(me, dtype=np.float32))
        return total.tolist(), [part.tolist() for part in received], [part.tolist() for part in gathered]

    for rank, (total, received, gathered) in enumerate(run_ranks(3, work)):
        assert total == [3, 3]
        assert received == [[10 * sender + rank] * (sender + rank) for sender in range(3)]
        assert gathered == [[], [0.0], [0.0, 1.0]]


def test_one_ranks_exception_aborts_the_others_and_surfaces():
    aborted = []

    def work(comm: ThreadCommunicator):
        if comm.rank == 1:
            raise KeyError("rank 1 fell")
        try:
            comm.all_gather(np.zeros(1))
        except threading.BrokenBarrierError:
            aborted.append(comm.rank)
            raise

    with pytest.raises(KeyError, match="rank 1 fell"):
        run_ranks(3, work)
    assert sorted(aborted) == [0, 2]


def test_a_rank_that_skips_a_collective_is_noticed():
    def leave(comm: ThreadCommunicator):
        return None if comm.rank == 0 else comm.all_gather(np.zeros(1))

    with pytest.raises(threading.BrokenBarrierError):
        run_ranks(2, leave, timeout=0.2)

    def mix(comm: ThreadCommunicator):
        return comm.all_gather(np.zeros(1)) if comm.rank else comm.all_reduce_sum(np.zeros(1))

    with pytest.raises(AssertionError, match="out of step"):
        run_ranks(2, mix)


def test_owned_ids_partition_the_samples():
    assert [owned_ids(7, rank, 3).tolist() for rank in range(3)] == [[0, 1, 2], [3, 4], [5, 6]]
    assert [owned_ids(2, rank, 4).tolist() for rank in range(4)] == [[0], [], [1], []]
