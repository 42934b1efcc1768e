"""Work shared among threads: all of it is done, once, and a failure is not lost."""

import threading

import numpy as np
import pytest

from sr_engine.threads import cores, in_pieces, one_blas_thread


@pytest.mark.parametrize(("count", "size"), [(0, 3), (1, 3), (7, 3), (9, 3), (50, 1)])
def test_every_index_is_worked_on_once(count, size):
    seen = np.zeros(count, int)

    def work(piece):
        seen[piece] += 1

    in_pieces(work, count, size, threads=4)

    assert (seen == 1).all()


def test_the_count_of_what_is_done_rises_to_all_of_it():
    counts = []
    in_pieces(lambda piece: None, 10, 3, threads=2, done=counts.append)
    assert counts == sorted(counts) and counts[-1] == 10


def test_a_failure_in_a_thread_reaches_the_caller_and_ends_the_work():
    begun = []

    def work(piece):
        begun.append(piece.start)
        raise ValueError(f"piece {piece.start}")

    with pytest.raises(ValueError, match="piece"):
        in_pieces(work, 1000, threads=1)
    assert begun == [0]


def test_no_more_threads_than_asked_for():
    names = set()
    in_pieces(lambda piece: names.add(threading.get_ident()), 64, threads=1)
    assert len(names) == 1


def test_the_number_of_threads_can_be_set(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert cores() == 3
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert cores() >= 1


def test_blas_is_kept_to_one_thread_and_set_free_again():
    from threadpoolctl import threadpool_info

    def openblas():
        return {
            one["num_threads"] for one in threadpool_info() if one["internal_api"] == "openblas"
        }

    before = openblas()
    with one_blas_thread():
        assert openblas() == {1}
    assert openblas() == before
