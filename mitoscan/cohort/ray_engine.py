"""Slides as tasks of a Ray cluster. The only importer of ray.

Ray does the scheduling: a task a slide, with the CPUs and GPUs it asks for, in worker processes that Ray
keeps between slides, so models are loaded once in each. All nodes must see the slides and OUT under the same
paths and have the same mitoscan. A slide whose node is lost starts again on another; writing its files again
does no harm, because each appears whole and a finished slide has its record last.
"""

from __future__ import annotations

import logging
import os
import platform
import queue
import signal
import socket
import threading
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mitoscan import __version__
from mitoscan.cohort.job import (
    Dropped,
    Ended,
    Event,
    Failed,
    Job,
    Outcome,
    Progressed,
    SlideFunction,
    Started,
)
from mitoscan.errors import ConfigError, MissingExtraError

try:
    import ray
    from ray import exceptions as ray_errors
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
except ImportError as exc:
    raise MissingExtraError(
        "--engine ray needs the package ray", remedy='Install it with: pip install "mitoscan[ray]"'
    ) from exc

log = logging.getLogger(__name__)

NODE_LOSSES = 5
"""A slide that has seen so many nodes die is given up: it may be what kills them."""
AHEAD = 2
"""Slides that Ray holds for each one that it can do, so that a node that is through has its next at once."""
_LOOK_EVERY_S = 5.0
"""How often the size of the cluster is asked for; it may grow and shrink under a run."""
_ANSWER_S = 5.0
_TAKE_S = 10.0
"""How long the mailbox holds an empty answer back."""
_ALONE = "The slide may be damaged, or a library fails on it: try another copy."
_ROOM = "Put fewer slides on a node with --ray-cpus, or use nodes with more memory."
_NODE_REMEDY = "All nodes need the same mitoscan, and slides and results under the same paths."


@dataclass
class _Slide:
    """A job that Ray has."""

    job: Job
    losses: int = 0
    """Nodes that were lost while they had it."""
    announced: bool = False
    """Whether the batch knows that it has started."""
    started: float | None = None
    """When this attempt did, by the driver's monotonic clock."""


class RayEngine:
    """Runs jobs on a Ray cluster; an `Engine`.

    Parameters
    ----------
    function
        Does one slide.
    address
        ``host:port`` of a running cluster, ``auto`` for the one that this machine belongs to, ``local`` to
        start one on this machine alone for the time of the run.
    num_cpus, num_gpus
        What one slide occupies, above 0 and from 0; shares of a GPU are allowed.
    slide_timeout_s
        A slide that takes longer is ended and fails. None: no limit.

    Raises
    ------
    ConfigError
        When the cluster cannot be reached, or no node has room for one slide.
    """

    def __init__(
        self,
        function: SlideFunction,
        address: str = "auto",
        *,
        num_cpus: float = 1,
        num_gpus: float = 0,
        slide_timeout_s: float | None = None,
    ) -> None:
        self._needs = {"CPU": num_cpus, "GPU": num_gpus}
        self._timeout_s = slide_timeout_s
        self._owns_connection = not ray.is_initialized()
        if self._owns_connection:
            _connect(address)
        try:
            self.slots = AHEAD * self._capacity()
            if not self.slots:
                raise ConfigError(
                    f"no node of the Ray cluster has {num_cpus:g} CPUs and {num_gpus:g} GPUs for a slide",
                    remedy="Start such a node first, or lower --ray-cpus and --ray-gpus.",
                )
            self._looked = time.monotonic()
            self._mailbox = _mailbox()
        except BaseException:
            if self._owns_connection:
                ray.shutdown()
            raise
        self._mail = self._mailbox.take.remote()
        # max_calls: with GPUs Ray would otherwise start a process, and load the models, for every slide.
        # max_retries: Ray would also repeat a slide that kills its process; that is the batch's to decide.
        remote: Any = ray.remote(num_cpus=num_cpus, num_gpus=num_gpus, max_calls=0, max_retries=0)
        self._do = remote(_do)
        self._function = ray.put(function)
        self._slides: dict[str, _Slide] = {}
        self._tokens: dict[Any, str] = {}
        self._stopped: list[Event] = []

    def submit(self, job: Job) -> None:
        """See ``job.Engine``."""
        self._send(_Slide(job))

    def poll(self, timeout_s: float) -> Sequence[Event]:
        """See ``job.Engine``."""
        self._look()
        events, self._stopped = self._stopped, []
        waiting = [self._mail, *self._tokens]
        ray.wait(waiting, num_returns=1, timeout=0 if events else timeout_s)
        ready, _ = ray.wait(waiting, num_returns=len(waiting), timeout=0)
        if self._mail in ready:
            events += self._read_mail()
        for task in ready:
            if task in self._tokens:
                events += self._ended(task)
        return [*events, *self._overdue()]

    def stop(self, *, now: bool) -> None:
        """See ``job.Engine``."""
        # The mailbox is asked by each task before it begins, so what Ray still holds back ends at once.
        with suppress(ray_errors.RayError):
            ray.get(self._mailbox.stop.remote())
        if now:
            for task in list(self._tokens):
                self._stopped.append(self._give_up(task, Dropped()))

    def close(self) -> None:
        """See ``job.Engine``; what still runs on the cluster ends."""
        if self._owns_connection:
            ray.shutdown()
            return
        self.stop(now=True)
        ray.wait([self._mail], timeout=_ANSWER_S)
        ray.kill(self._mailbox)

    def _send(self, slide: _Slide) -> None:
        token = uuid.uuid4().hex
        task = self._do.remote(self._function, slide.job, token, self._mailbox, Path.cwd(), __version__)
        self._slides[token], self._tokens[task] = slide, token

    def _read_mail(self) -> list[Event]:
        letters: list[tuple[str, Event]] = []
        with suppress(ray_errors.RayError):  # the mailbox is started anew; progress of a moment is lost
            letters = ray.get(self._mail)
        self._mail = self._mailbox.take.remote()
        events: list[Event] = []
        for token, event in letters:
            slide = self._slides.get(token)
            if slide is None:  # of an attempt that is over
                continue
            if isinstance(event, Started):
                slide.started = time.monotonic()
                if slide.announced:
                    continue
                slide.announced = True
            events.append(event)
        return events

    def _ended(self, task: Any) -> list[Event]:
        token = self._tokens.pop(task)
        slide = self._slides.pop(token)
        outcome = self._outcome(task, slide)
        if outcome is None:
            log.warning("%s: its node is lost, it starts again on another", slide.job.path)
            self._send(replace(slide, losses=slide.losses + 1, started=None))
            return []
        ended = Ended(slide.job.slide_id, outcome)
        if not slide.announced and not isinstance(outcome, Dropped):
            return [Started(slide.job.slide_id), ended]  # it was quicker than its letter
        return [ended]

    def _outcome(self, task: Any, slide: _Slide) -> Outcome | None:
        """Say what became of a task that is over; None: its node was lost, and it may try another."""
        try:
            outcome: Outcome = ray.get(task)
        except (ray_errors.NodeDiedError, ray_errors.ObjectLostError):
            if slide.losses < NODE_LOSSES:
                return None
            return _failed("NodeLost", f"its node was lost {slide.losses + 1} times", _ALONE)
        except ray_errors.OutOfMemoryError as exc:
            return _failed("WorkerMemory", f"Ray ended the worker, memory ran out: {exc}", _ROOM)
        except ray_errors.WorkerCrashedError as exc:
            return _failed("WorkerDied", f"the worker process ended: {exc}", _ALONE)
        except ray_errors.RayError as exc:
            cause = getattr(exc, "cause", None) or exc
            return _failed(type(cause).__name__, f"the node could not do it: {cause}", _NODE_REMEDY)
        return outcome

    def _overdue(self) -> list[Event]:
        """End slides that take too long."""
        if self._timeout_s is None:
            return []
        late = time.monotonic() - self._timeout_s
        message = f"not done after {self._timeout_s:g} s"
        failed = _failed("SlideTimeout", message, "Raise --slide-timeout, if it may last.")
        begun = [(task, self._slides[token].started) for task, token in self._tokens.items()]
        return [self._give_up(task, failed) for task, at in begun if at is not None and at < late]

    def _give_up(self, task: Any, outcome: Outcome) -> Ended:
        """End a task, or take it from Ray's queue."""
        ray.cancel(task, force=True)
        return Ended(self._slides.pop(self._tokens.pop(task)).job.slide_id, outcome)

    def _look(self) -> None:
        """Follow a cluster that grows and shrinks."""
        if time.monotonic() - self._looked < _LOOK_EVERY_S:
            return
        self._looked = time.monotonic()
        slots = AHEAD * self._capacity()
        if not slots and self.slots:
            log.warning("no node of the Ray cluster can do a slide any more; waiting for one")
        self.slots = slots

    def _capacity(self) -> int:
        """Count the slides that all living nodes can do at once."""
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        needs = {name: amount for name, amount in self._needs.items() if amount}
        fits = (min(node.get(name, 0) / amount for name, amount in needs.items()) for node in nodes)
        return sum(int(fit + 1e-6) for fit in fits)  # 0.3 / 0.1 is a little less than 3


class Mailbox:
    """Where tasks tell how far they are and ask whether they may begin: an actor beside the driver."""

    def __init__(self) -> None:
        self._letters: queue.SimpleQueue[tuple[str, Event]] = queue.SimpleQueue()
        self._stopped = False

    def begin(self, token: str, slide_id: str) -> bool:
        """Say whether a slide may begin, and note that it does."""
        if not self._stopped:
            self.tell(token, Started(slide_id))
        return not self._stopped

    def tell(self, token: str, event: Started | Progressed) -> None:
        """Leave an event for the driver."""
        self._letters.put((token, event))

    def take(self) -> list[tuple[str, Event]]:
        """Wait until there is something, and hand it over; the driver has only one such call at a time."""
        letters = []
        with suppress(queue.Empty):
            letters.append(self._letters.get(timeout=_TAKE_S))
            while True:
                letters.append(self._letters.get_nowait())
        return letters

    def stop(self) -> None:
        """Let no further slide begin, and a waiting `take` return."""
        self._stopped = True
        self._letters.put(("", Started("")))


def _mailbox() -> Any:
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    remote: Any = ray.remote(
        num_cpus=0, max_restarts=-1, max_task_retries=-1, max_concurrency=8, scheduling_strategy=here
    )
    return remote(Mailbox).remote()


def _connect(address: str) -> None:
    """Join or start a cluster, quietly, leaving the driver's signals alone."""
    keep = signal.getsignal(signal.SIGTERM)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster that we start tells nobody
    start = {"include_dashboard": False} if address == "local" else {}
    if address not in {"auto", "local"}:
        _reachable(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **start)
    except Exception as exc:  # Ray raises a bare one when a start takes too long
        raise _no_cluster(address, exc) from exc
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, keep)


def _reachable(address: str) -> None:
    """Refuse an address where nobody answers; Ray itself would try for minutes and then end the process."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=_ANSWER_S).close()
    except (OSError, OverflowError, ValueError) as exc:
        raise _no_cluster(address, exc) from exc


def _no_cluster(address: str, exc: Exception) -> ConfigError:
    return ConfigError(
        f"no Ray cluster at {address!r}: {exc}",
        remedy="Start one with `ray start --head`, or give --ray-address local.",
    )


def _failed(error: str, message: str, remedy: str) -> Failed:
    return Failed("worker", error, " ".join(message.split()), remedy, 1, transient=True)


def _do(function: SlideFunction, job: Job, token: str, mailbox: Any, folder: Path, version: str) -> Outcome:
    """Do one slide: what runs on the nodes."""
    if not ray.get(mailbox.begin.remote(token, job.slide_id)):
        return Dropped()
    if wrong := _unlike_driver(job, folder, version):
        message = f"node {platform.node()} {wrong}"
        return Failed("worker", ConfigError.__name__, message, _NODE_REMEDY, ConfigError.exit_code)

    def report(event: Progressed) -> None:
        mailbox.tell.remote(token, event)

    return function(job, report)


def _unlike_driver(job: Job, folder: Path, version: str) -> str:
    """Take the driver's place on this node; say what differs where that cannot be."""
    if version != __version__:
        return f"has mitoscan {__version__}, the command runs {version}"
    if folder.is_dir():
        os.chdir(folder)  # slides, results and models may be named relative to it
    elif not (job.path.is_absolute() and job.out.is_absolute()):
        return f"does not see {folder}, which {job.path} is relative to"
    return "" if job.out.is_dir() else f"does not see the results' folder {job.out}"
