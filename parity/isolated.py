"""Run a job in a process of its own, so that a crash is contained, memory is given back, and its peak is known.

Jobs are forked from a server process that has imported the heavy libraries once and run nothing, which makes a fresh
process cost milliseconds. What a job's libraries print goes to a log; only its result, its progress and its failure
come back.
"""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import pickle
import resource
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from models.errors import ModelError
from parity.errors import CannotStartError, ParityError, RungError
from parity.files import scratch_folder

T = TypeVar("T")

#: Tells how far a job is: steps done, steps in all.
Progress = Callable[[int, int], None]

#: MB that processes forked from this one have taken by themselves.
_beside: list[float] = []
#: Imported once by the server that jobs are forked from.
PRELOAD = ["numpy", "torch", "models.authoring.decoder"]
PRELOAD_ORIGINALS = ["transformers.modeling_utils", "transformers.generation"]
PRELOAD_CONVERTER = ["parity.convert.lowerings"]
_SERVED, _FORKED = multiprocessing.get_context("forkserver"), multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Finished(Generic[T]):
    """A job's result, its wall time, and the peak resident memory of its process.

    What processes that it forked took besides what they share with it counts as its own, each at its peak, as far as
    resident memory tells: of a page that one of them writes to later, only one copy counts.
    """

    value: T
    seconds: float
    peak_rss_mb: float


class Job(Generic[T]):
    """A running job. ``result`` waits for it; leaving the ``with`` block ends it whatever happened.

    One that is ``forked`` from this very process has all that is in its memory, and only the thread that forks it.
    """

    def __init__(self, name: str, function: Callable[[Progress], T], *, forked: bool = False) -> None:
        self.name = name
        self._forked = forked
        self._place = ExitStack()
        self._began = time.perf_counter()
        try:
            self._log = self._place.enter_context(scratch_folder()) / "log"
            self._log.touch()
            self._connection, theirs = multiprocessing.Pipe(duplex=False)
            given = function if forked else pickle.dumps(function)
            make = _FORKED.Process if forked else _SERVED.Process
            self._process: BaseProcess = make(target=_work, args=(given, theirs, str(self._log)), name=name)
            with _quietly(self._log):
                self._process.start()
            theirs.close()
        except OSError as error:
            self._place.close()
            crowded = error.errno in (errno.ENOMEM, errno.EAGAIN)
            remedy = "end other processes" if crowded else "set TMPDIR to a short path that can be written"
            raise CannotStartError(f"{name} cannot be started ({error}); {remedy}") from None
        except BaseException:  # Ctrl-C while it starts: nobody is in the ``with`` block yet to clean up
            self._place.close()
            raise

    def result(self, on_progress: Progress | None = None, patience: float | None = None) -> Finished[T]:
        """Wait for the job, at most ``patience`` seconds from one sign of progress to the next.

        Raises:
            ParityError, ModelError: what the job itself raised.
            RungError: the process died, with the signal named, raised something unexpected, or stands still.
        """
        while (finished := self.receive(on_progress, patience)) is None:
            pass
        return finished

    @property
    def connection(self) -> Connection:
        """Readable when there is something to ``receive``; for waiting on several jobs at once."""
        return self._connection

    def receive(self, on_progress: Progress | None = None, patience: float | None = None) -> Finished[T] | None:
        """Wait for the next word of the job; ``None`` unless it was the last. Raises as ``result`` does."""
        if not self._connection.poll(patience):
            self._process.kill()
            minutes = f"{(patience or 0) / 60:.3g} minutes"
            raise RungError(
                f"{self.name} made no progress for {minutes} and was ended{self._last_words()}; "
                "the file it runs may be damaged, or the machine has too little memory for it"
            )
        try:
            kind, payload = self._connection.recv()
        except EOFError:
            raise self._died() from None
        if kind == "raised":
            raise payload
        if kind == "crashed":
            raise RungError(f"{self.name} failed: {payload}")
        if kind == "done":
            value, peak, ended = payload
            if self._forked:
                _beside.append(peak)
            self._process.join()
            return Finished(value, ended - self._began, peak)
        if on_progress:
            on_progress(*payload)
        return None

    def _died(self) -> RungError:
        self._process.join()
        code = self._process.exitcode or 0
        if code >= 0:
            return RungError(f"{self.name} ended without a result (exit code {code}){self._last_words()}")
        name = signal.Signals(-code).name
        hint = "; the machine may have run out of memory" if -code == signal.SIGKILL else ""
        return RungError(f"{self.name} was killed by {name}{hint}{self._last_words()}")

    def _last_words(self) -> str:
        with suppress(OSError):
            lines = [line.strip() for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
            if lines:
                return f"; it last said: {lines[-1][:300]}"
        return ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.is_alive():
            self._process.kill()
        self._process.join()
        self._connection.close()
        self._place.close()


def run(
    name: str,
    function: Callable[[Progress], T],
    on_progress: Progress | None = None,
    patience: float | None = None,
) -> Finished[T]:
    """Run ``function`` (picklable; it is given a progress callback) in its own process and wait for it.

    ``patience`` is for how many seconds it may show no progress before it is ended; ``None`` for any number.
    """
    with Job(name, function) as job:
        return job.result(on_progress, patience)


def fork(name: str, function: Callable[[Progress], T]) -> Job[T]:
    """A job that needs not be picklable, in a process that shares this one's memory until either writes to it."""
    return Job(name, function, forked=True)


def prepare(*, originals: bool = True, converter: bool) -> None:
    """Say what the coming jobs share; the first of them starts the server, which imports it, unless ``begin`` does."""
    shared = [*PRELOAD, *(PRELOAD_ORIGINALS if originals else ()), *(PRELOAD_CONVERTER if converter else ())]
    multiprocessing.set_forkserver_preload(shared)


def begin() -> None:
    """Start the server, which imports what jobs share while this process goes on; one that is there already stays."""
    with suppress(OSError), _quietly(Path(os.devnull)):  # the first job says what stands in the way
        forkserver.ensure_running()


@contextmanager
def _quietly(log: Path) -> Iterator[None]:
    """Send standard output and error to ``log`` while the server starts: it inherits them, its libraries chatter."""
    sys.stderr.flush()
    sys.stdout.flush()
    saved = [os.dup(1), os.dup(2)]
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            for descriptor, copy in enumerate(saved, start=1):
                os.dup2(copy, descriptor)
                os.close(copy)


def _work(given: bytes | Callable[[Progress], Any], connection: Connection, log: str) -> None:
    """The job's process: quiet, immune to the terminal's Ctrl-C (the parent ends it), gone when the parent is.

    What its libraries leave in the temporary folder goes with its log.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    tempfile.tempdir = os.environ["TMPDIR"] = str(Path(log).parent)
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)  # not created: without it the parent has given up already
    with os.fdopen(descriptor, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        _beside.clear()  # those of the parent
        shared = 0.0 if isinstance(given, bytes) else _peak()
        function = pickle.loads(given) if isinstance(given, bytes) else given  # noqa: S301  (our own parent wrote it)
        value = function(lambda done, total: connection.send(("progress", (done, total))))
        peak = _peak() - shared + sum(_beside)
        # When it ended, by the clock that all processes share: its result may be taken much later.
        connection.send(("done", (value, peak, time.perf_counter())))
    except (ParityError, ModelError) as error:
        connection.send(("raised", error))
    except Exception as error:  # noqa: BLE001  (whatever it is becomes an ERROR verdict with its cause)
        traceback.print_exc()
        connection.send(("crashed", f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"))
    finally:
        connection.close()


def _peak() -> float:
    """MB that this process had at most so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _end_with_parent() -> None:
    """Watch the parent's end of a pipe, which the system closes however the parent ends.

    A native call that loops without giving up the interpreter keeps this thread from running. For that case Linux is
    asked to signal this process as well, which ends it (a process that has no use for SIGIO ends by it).
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        fcntl.fcntl(parent.sentinel, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(parent.sentinel, fcntl.F_SETFL, fcntl.fcntl(parent.sentinel, fcntl.F_GETFL) | os.O_ASYNC)
        parent.join()
        os._exit(1)
