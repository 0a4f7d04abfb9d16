"""Threads that read regions ahead of the models, in order and in bounded memory."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType

import numpy as np
import numpy.typing as npt

from mitoscan.slide.base import Slide
from mitoscan.units import Box

LOOK_AHEAD = 2
"""Regions under way or waiting, for each thread."""
_MOST_THREADS = 16


def threads_for(cpu_is_busy: bool) -> int:
    """Give how many threads keep the models busy on the cores that this process may use.

    Parameters
    ----------
    cpu_is_busy
        The models run on the same cores; reading a slide is then about a quarter of all work.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(_MOST_THREADS, max(2, cores // 4 if cpu_is_busy else cores))


@dataclass(frozen=True)
class Region:
    """A level-0 box to be read at ``size`` × ``size`` px."""

    box: Box
    size: int


class ReaderPool:
    """Reads regions with several threads.

    They share a handle where it can be shared, because it keeps decoded tiles: what one thread reads its
    neighbour need not decode again.

    Parameters
    ----------
    open_handle
        Opens the slide; called once, or once in each thread, at its first region.
    threads
        How many read at a time.
    """

    def __init__(self, open_handle: Callable[[], Slide], threads: int) -> None:
        self._open = open_handle
        self._local = threading.local()
        self._handles: list[Slide] = []
        self._opening = threading.Lock()
        self._look_ahead = LOOK_AHEAD * threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="reader")

    def __enter__(self) -> ReaderPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        for handle in self._handles:
            handle.close()

    def read(self, regions: Iterable[Region]) -> Iterator[npt.NDArray[np.uint8]]:
        """Yield each region's pixels, uint8 (size, size, 3), in the order given.

        At most ``LOOK_AHEAD`` regions a thread are held. An error while reading is raised here.
        """
        waiting: deque[Future[npt.NDArray[np.uint8]]] = deque()
        try:
            for region in regions:
                waiting.append(self._pool.submit(self._read, region))
                if len(waiting) >= self._look_ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    def _read(self, region: Region) -> npt.NDArray[np.uint8]:
        handle: Slide | None = getattr(self._local, "handle", None)
        if handle is None:
            handle = self._local.handle = self._handle()
        return handle.read(region.box, region.size, region.size)

    def _handle(self) -> Slide:
        with self._opening:
            if not (self._handles and self._handles[0].shareable):
                self._handles.append(self._open())
            return self._handles[-1]
