"""Slides in worker processes of this machine: one that crashes, hangs or eats memory costs only its slide."""

from __future__ import annotations

import os
import queue
import signal
import threading
import time
from collections import deque
from collections.abc import Sequence
from multiprocessing import connection, get_context
from multiprocessing.connection import Connection

from mitoscan.cohort import system
from mitoscan.cohort.job import Done, Dropped, Ended, Event, Failed, Job, Progressed, SlideFunction, Started

_GIB = 2**30
_CHECK_S = 0.5
"""How often memory and time limits are looked at."""
_START_S = 600.0
"""Granted to a worker until it begins with its slide: imports may be slow on a busy network drive."""
_FAREWELL_S = 3.0
_WORKER_EXIT_CODE = 1


class ProcessEngine:
    """Runs each slide in one of a few spawned processes; see ``job.Engine``.

    A worker writes the files of its slide itself and tells only the outcome, so this process stays small.

    Parameters
    ----------
    function
        Does one slide.
    workers
        Processes, each with its share of the cores. Started when there is a slide for them.
    slide_timeout_s
        A slide that takes longer is given up and its worker killed. None: no limit.
    memory_gb
        A worker whose resident memory exceeds so many GiB is killed. None: no limit of ours.
    """

    def __init__(
        self,
        function: SlideFunction,
        workers: int = 1,
        *,
        slide_timeout_s: float | None = None,
        memory_gb: float | None = None,
    ) -> None:
        self.slots = workers
        self._function = function
        self._timeout_s, self._memory_gb = slide_timeout_s, memory_gb
        self._waiting: deque[Job] = deque()
        self._workers: dict[int, _Worker] = {}
        self._stopped: list[Event] = []

    def submit(self, job: Job) -> None:
        """See ``job.Engine``."""
        self._waiting.append(job)

    def poll(self, timeout_s: float) -> Sequence[Event]:
        """See ``job.Engine``."""
        events, self._stopped = self._stopped, []
        self._dispatch()
        workers = list(self._workers.values())
        if workers:
            channels = [channel for w in workers for channel in (w.pipe, w.process.sentinel)]
            connection.wait(channels, 0 if events else min(timeout_s, _CHECK_S))
        elif not events:
            time.sleep(min(timeout_s, _CHECK_S))
        for worker in workers:
            events += worker.messages()
            events += self._enforce(worker)
        return events

    def stop(self, *, now: bool) -> None:
        """See ``job.Engine``."""
        self._stopped += [Ended(job.slide_id, Dropped()) for job in self._waiting]
        self._waiting.clear()
        if now:
            for worker in self._workers.values():
                self._stopped += worker.messages()
                worker.kill()
                if worker.job is not None:
                    self._stopped.append(Ended(worker.job.slide_id, Dropped()))
            self._workers.clear()

    def close(self) -> None:
        """See ``job.Engine``."""
        for worker in self._workers.values():
            worker.pipe.close()  # an idle worker ends by itself then
        deadline = time.monotonic() + _FAREWELL_S
        for worker in self._workers.values():
            worker.process.join(max(0.0, deadline - time.monotonic()))
            worker.kill()
        self._workers.clear()

    def _dispatch(self) -> None:
        while self._waiting:
            idle = next((w for w in self._workers.values() if w.job is None), None)
            if idle is None:
                if len(self._workers) >= self.slots:
                    break
                number = next(n for n in range(self.slots) if n not in self._workers)
                idle = self._workers[number] = _Worker(self._function, number, self.slots)
            if idle.give(self._waiting[0]):
                self._waiting.popleft()
            else:  # it had ended while idle
                self._remove(idle)

    def _enforce(self, worker: _Worker) -> list[Event]:
        """Notice that a worker ended, or end it because it takes too long or too much memory."""
        job = worker.job
        failed = None
        if worker.ended():
            if told := worker.messages():  # it had sent its outcome before it ended
                return told
            failed = _died(worker.process.exitcode)
        elif job is not None and self._timeout_s is not None and worker.seconds() > self._timeout_s:
            failed = _limit(
                "SlideTimeout",
                f"not done after {self._timeout_s:g} s",
                "Raise --slide-timeout, if it may last.",
            )
        elif job is not None and self._memory_gb is not None:
            used = system.memory_bytes(worker.process.pid or 0) / _GIB
            if used > self._memory_gb:
                failed = _limit(
                    "WorkerMemory",
                    f"the worker took {used:.1f} GB, more than --worker-memory {self._memory_gb:g}",
                    "Raise --worker-memory, or lower --batch-size and --readers.",
                )
        if failed is None:
            return []
        self._remove(worker)
        return [] if job is None else [Ended(job.slide_id, failed)]

    def _remove(self, worker: _Worker) -> None:
        worker.kill()
        self._workers = {n: w for n, w in self._workers.items() if w is not worker}


class _Worker:
    """The parent's end of a worker process."""

    def __init__(self, function: SlideFunction, number: int, of: int) -> None:
        context = get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.job: Job | None = None
        self._since = 0.0
        self.process = context.Process(
            target=_work, args=(theirs, function, number, of, os.getpid()), daemon=True
        )
        self.process.start()
        theirs.close()  # so that a dead worker is an end of file here

    def give(self, job: Job) -> bool:
        """Hand over a job; False when the process is gone."""
        try:
            self.pipe.send(job)
        except OSError:
            return False
        self.job, self._since = job, time.monotonic() + _START_S
        return True

    def seconds(self) -> float:
        """How long it has been at its job; below 0 while it still starts."""
        return time.monotonic() - self._since

    def messages(self) -> list[Event]:
        """Read what it has told; a message cut short by its end is dropped."""
        events: list[Event] = []
        try:
            while self.pipe.poll():
                event = self.pipe.recv()
                events.append(event)
                if isinstance(event, Started):
                    self._since = time.monotonic()
                elif isinstance(event, Ended):
                    self.job = None
        except (EOFError, OSError):
            self.process.join(_FAREWELL_S)  # its end is known here before the system has its exit code
        return events

    def ended(self) -> bool:
        """Whether the process is gone."""
        return not self.process.is_alive()

    def kill(self) -> None:
        """End it at once; files appear whole or not at all, so nothing is cut through."""
        if self.process.is_alive():
            self.process.kill()
        self.process.join()
        self.pipe.close()


def _work(pipe: Connection, function: SlideFunction, number: int, of: int, parent: int) -> None:
    """Do slides until the parent closes the pipe or ends. Runs in the worker process."""
    system.die_with_parent(parent)
    # Ctrl-C and a scheduler's SIGTERM reach the whole group: what becomes of a slide is the parent's say.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    system.be_killed_first()
    system.keep_to_share(number, of)
    inbox: queue.SimpleQueue[Job] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(pipe, inbox), daemon=True).start()
    report = _Sender(pipe)
    while True:
        job = inbox.get()
        report(Started(job.slide_id))
        report(Ended(job.slide_id, function(job, report)))


def _listen(pipe: Connection, inbox: queue.SimpleQueue[Job]) -> None:
    """Take jobs; end the process, whatever it is busy with, when the parent is gone."""
    while True:
        try:
            inbox.put(pipe.recv())
        except (EOFError, OSError):
            os._exit(_WORKER_EXIT_CODE)


class _Sender:
    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def __call__(self, event: Started | Progressed | Ended) -> None:
        try:
            self._pipe.send(event)
        except OSError:
            os._exit(_WORKER_EXIT_CODE)


def _died(exit_code: int | None) -> Failed:
    code = exit_code or 0
    if code >= 0:
        how, remedy = f"ended with exit code {code}", "See its messages above; please report this."
    else:
        how = f"was ended by {_signal_name(-code)}"
        remedy = "The slide may be damaged, or a library fails on it: try another copy."
        if -code == signal.SIGKILL:
            how += ", perhaps because memory ran out"
            remedy = "Use fewer --workers, or a machine with more memory."
    return _limit("WorkerDied", f"the worker process {how}", remedy)


def _limit(error: str, message: str, remedy: str) -> Failed:
    return Failed("worker", error, message, remedy, 1, transient=True)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class ThreadEngine:
    """Runs one slide at a time in a thread of this process: no isolation, but debuggers see it."""

    slots = 1

    def __init__(self, function: SlideFunction) -> None:
        self._function = function
        self._waiting: deque[Job] = deque()
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._running = ""
        self._stop_now = False

    def submit(self, job: Job) -> None:
        """See ``job.Engine``."""
        self._waiting.append(job)

    def poll(self, timeout_s: float) -> Sequence[Event]:
        """See ``job.Engine``."""
        if self._waiting and (self._thread is None or not self._thread.is_alive()):
            job = self._waiting.popleft()
            self._events.put(Started(job.slide_id))
            self._thread = threading.Thread(target=self._do, args=(job,), daemon=True)
            self._thread.start()
        try:
            events = [self._events.get(timeout=timeout_s)]
            while not self._events.empty():
                events.append(self._events.get())
        except queue.Empty:
            return []
        if self._thread is not None and isinstance(events[-1], Ended):
            self._thread.join()
        return events

    def stop(self, *, now: bool) -> None:
        """See ``job.Engine``; a running slide ends at its next sign of progress."""
        while self._waiting:
            self._events.put(Ended(self._waiting.popleft().slide_id, Dropped()))
        self._stop_now = now

    def close(self) -> None:
        """See ``job.Engine``."""
        self._stop_now = True
        if self._thread is not None:
            self._thread.join()

    def _do(self, job: Job) -> None:
        try:
            outcome: Done | Failed | Dropped = self._function(job, self._report)
        except _StoppedError:
            outcome = Dropped()
        self._events.put(Ended(job.slide_id, outcome))

    def _report(self, event: Progressed) -> None:
        if self._stop_now:
            raise _StoppedError
        self._events.put(event)


class _StoppedError(BaseException):
    """Unwinds a slide that is given up; no ``except Exception`` holds it."""
