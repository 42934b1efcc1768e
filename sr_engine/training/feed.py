"""A pool of scenes that other processes simulate, so that a fast device need not wait for them.

Which crop is cut from which scene then depends on how fast they are: a run is repeated in kind, not
bit by bit. Without processes it is.
"""

import os
import queue
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import multiprocessing

from sr_engine.training.dataset import PoolScene, SlicePool, random_scene
from sr_engine.training.shards import Shard

AHEAD = 2  # scenes an idle process keeps ready
PATIENCE_S = 300.0


ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
POLITE = 10  # niceness: the process that feeds the device comes first


def _simulate_for_ever(shards: list[Shard], crop: int, seed: int, made: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it
    os.nice(POLITE)
    torch.set_num_threads(1)
    rng = np.random.default_rng(seed)
    while True:
        made.put(random_scene(shards, rng, crop))


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Have processes that are started within the body compute in one thread.

    Libraries read it when they are loaded. Fourteen processes with sixteen threads each made one
    scene in the time of twenty.
    """
    before = {name: os.environ.get(name) for name in ONE_THREAD}
    os.environ.update(ONE_THREAD)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


class FedPool(SlicePool):
    """A `SlicePool` whose scenes come from `workers` processes.

    The processes end with this one.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        *,
        workers: int,
        seed: int,
        device: torch.device,
        **options: Any,
    ) -> None:
        self._closed = False
        context = multiprocessing.get_context("spawn")
        made = context.Queue(maxsize=AHEAD * workers)
        for shard in shards:
            shard.volume.share_memory_()
            shard.mask.share_memory_()
        self._workers = [
            context.Process(
                target=_simulate_for_ever,
                args=(list(shards), options["crop"], seed * 1000 + n, made),
                daemon=True,
            )
            for n in range(workers)
        ]
        with one_thread_each():
            for worker in self._workers:
                worker.start()
        self._ready: queue.Queue[PoolScene] = queue.Queue(maxsize=AHEAD)
        threading.Thread(target=self._carry, args=(made, device), daemon=True).start()
        super().__init__(shards, seed=seed, device=device, **options)

    def _carry(self, made: Any, device: torch.device) -> None:
        """Bring scenes to the device as they are made, beside the training."""
        stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        while True:
            try:
                scene: PoolScene = made.get()
            except (EOFError, OSError):
                if self._closed:
                    return
                raise
            if stream is not None:
                with torch.cuda.stream(stream):
                    parts = {
                        name: getattr(scene, name).to(device) for name in ("high", "low", "planted")
                    }
                    stream.synchronize()
                scene = replace(scene, **parts)
            self._ready.put(scene)

    def _new(self) -> PoolScene:
        try:
            return self._ready.get(timeout=PATIENCE_S)
        except queue.Empty:
            alive = sum(worker.is_alive() for worker in self._workers)
            raise RuntimeError(
                f"no scene in {PATIENCE_S:g} s: {alive} of {len(self._workers)} processes are alive"
            ) from None

    def refresh(self) -> None:
        """Take the scenes that are ready; do not wait for one."""
        while True:
            try:
                self.put(self._ready.get_nowait())
            except queue.Empty:
                return

    def close(self) -> None:
        """End the processes."""
        self._closed = True
        for worker in self._workers:
            worker.terminate()
