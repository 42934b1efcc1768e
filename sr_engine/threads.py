"""Work shared among the cores by plain threads: numpy, scipy and torch let go of the GIL.

BLAS and OpenMP share each single operation among the cores and wait for the slowest; next to a busy
neighbour that wait takes most of the time. Here a thread takes a whole piece of the work and waits
for nobody. A piece is computed the same way whoever takes it, so the result does not depend on the
number of threads.
"""

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager

Work = Callable[[slice], None]


def cores() -> int:
    """Return the number of threads: OMP_NUM_THREADS, else the cores that this process may use."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, int(asked)) if asked.isdigit() else len(os.sched_getaffinity(0))


def in_pieces(
    work: Work,
    count: int,
    size: int = 1,
    *,
    threads: int | None = None,
    done: Callable[[int], None] = lambda pieces: None,
) -> None:
    """Call `work` with slices of at most `size` that cover ``range(count)``, from several threads.

    What `work` raises is raised here, and no piece is begun after it.

    Parameters
    ----------
    done
        Called in the caller's thread with the number of indices that are done so far.
    """
    failed = threading.Event()

    def one(piece: slice) -> None:
        if failed.is_set():
            return
        try:
            work(piece)
        except BaseException:
            failed.set()
            raise

    pieces = [slice(first, min(first + size, count)) for first in range(0, count, size)]
    with ThreadPoolExecutor(threads or cores()) as pool:
        running = {pool.submit(one, piece): piece for piece in pieces}
        finished = 0
        try:
            for future in as_completed(running):
                future.result()
                finished += running[future].stop - running[future].start
                done(finished)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Keep BLAS from starting threads of its own within the body.

    OpenBLAS' threads spin: on a busy machine a product of matrices took ten times as long with two
    of them as with one.
    """
    from threadpoolctl import ThreadpoolController  # training runs where there is none

    with ThreadpoolController().select(user_api="blas").limit(limits=1):
        yield
