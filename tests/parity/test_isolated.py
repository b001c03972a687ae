"""A crash of a job is contained and named; what a job raises comes back; nothing is left behind."""

import ctypes
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import pytest

from parity import isolated
from parity.errors import PromptError, RungError


def _answer(progress: isolated.Progress) -> int:
    progress(1, 2)
    os.write(1, b"chatter that must not reach the terminal")
    return 42


def _die(number: int, _: isolated.Progress) -> None:
    os.kill(os.getpid(), number)
    time.sleep(60)


def _segfault(_: isolated.Progress) -> None:
    ctypes.string_at(0)


def _exit(_: isolated.Progress) -> None:
    os._exit(7)


def _raise(error: Exception, _: isolated.Progress) -> None:
    raise error


def _take(megabytes: int, _: isolated.Progress) -> int:
    return len(bytes(range(256)) * (megabytes * 4000))


def _take_beside(before: int, beside: int, progress: isolated.Progress) -> int:
    held = bytes(range(256)) * (before * 4000)
    with isolated.fork("taking", partial(_take, beside)) as job:
        progress(0, 1)
        return len(held) + job.result().value


def _pid(_: isolated.Progress) -> int:
    return os.getpid()


def test_result_progress_and_cost_come_back(capfd: pytest.CaptureFixture[str]) -> None:
    """The value, the progress calls, the time and the peak memory; the job's prints stay in its log."""
    calls: list[tuple[int, int]] = []
    finished = isolated.run("answering", _answer, lambda done, total: calls.append((done, total)))
    assert finished.value == 42
    assert calls == [(1, 2)]
    assert finished.seconds > 0
    assert finished.peak_rss_mb > 1
    captured = capfd.readouterr()
    assert "chatter" not in captured.out + captured.err


def test_what_a_forked_process_takes_for_itself_counts() -> None:
    """And what it shares with the one that forked it counts once."""
    alone = isolated.run("taking", partial(_take, 100)).peak_rss_mb
    both = isolated.run("taking", partial(_take_beside, 100, 200)).peak_rss_mb
    assert alone + 150 < both < alone + 290


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGABRT, signal.SIGTERM])
def test_death_by_signal_names_the_signal(number: signal.Signals) -> None:
    """Whatever signal ends a job, the run goes on and says which."""
    with pytest.raises(RungError, match=f"dying was killed by {number.name}"):
        isolated.run("dying", partial(_die, number))


def test_a_real_segfault_is_contained() -> None:
    """A read of address zero kills the job only."""
    with pytest.raises(RungError, match="SIGSEGV"):
        isolated.run("crashing", _segfault)
    assert isolated.run("answering", _answer).value == 42


def test_a_job_that_is_asked_late_took_no_longer() -> None:
    """What others do meanwhile is not its time."""
    began = time.perf_counter()
    with isolated.Job("answering", _answer) as job:
        assert job.connection.poll(60)
        answering = time.perf_counter()
        time.sleep(2)
        assert job.result().seconds < answering - began + 1


def test_silent_exit_is_an_error() -> None:
    """A process that just ends, even orderly, has no result."""
    with pytest.raises(RungError, match="without a result"):
        isolated.run("leaving", _exit)


def test_own_errors_come_back_as_they_are() -> None:
    """An error of this project keeps its type and message."""
    with pytest.raises(PromptError, match="no tokens"):
        isolated.run("tokenizing", partial(_raise, PromptError("no tokens")))


def test_unexpected_errors_become_one_line() -> None:
    """Anything else is a rung error with the type and the message on one line."""
    with pytest.raises(RungError, match=r"^working failed: ZeroDivisionError: a b$"):
        isolated.run("working", partial(_raise, ZeroDivisionError("a\n b")))


def test_leaving_the_block_ends_the_job() -> None:
    """An interrupted wait leaves no process behind."""
    with isolated.Job("sleeping", partial(_die, 0)) as job:
        pid = job._process.pid
    assert pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_every_job_has_its_own_process() -> None:
    """No two jobs share a process, nor any with the caller."""
    pids = {isolated.run("asking", _pid).value for _ in range(3)} | {os.getpid()}
    assert len(pids) == 4


def _leave_a_file(_: isolated.Progress) -> str:
    with tempfile.NamedTemporaryFile(delete=False) as file:
        file.write(b"what a library forgets")
    return file.name


def _loop_in_native_code(_: isolated.Progress) -> None:
    # The regular expression machine never gives up the interpreter: no other thread of the process runs.
    re.match(r"(a+)+$", "a" * 64 + "b")


def _progress_then_loop(progress: isolated.Progress) -> None:
    for step in range(3):
        progress(step, 3)
        time.sleep(0.4)
    _loop_in_native_code(progress)


def test_what_a_job_leaves_in_the_temporary_folder_goes_with_it() -> None:
    """Libraries of a job that is killed cannot tidy up either."""
    assert not Path(isolated.run("leaving", _leave_a_file).value).exists()


def test_a_job_that_stands_still_is_ended() -> None:
    """Progress starts the patience anew; a loop in native code, which hears no signal but this one, uses it up."""
    began = time.monotonic()
    with pytest.raises(
        RungError, match=r"looping made no progress for 0\.0167 minutes and was ended.*; the file it runs"
    ):
        isolated.run("looping", _progress_then_loop, patience=1.0)
    assert 1.75 < time.monotonic() - began < 30  # 0.8 s to the last sign of progress, and the patience after it


PARENT = """
import sys
from parity import isolated
from test_isolated import _progress_then_loop
if __name__ == "__main__":
    with isolated.Job("looping", _progress_then_loop) as job:
        job.result(lambda done, _: print(job._process.pid, flush=True) if done == 2 else None)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the system ends jobs with their parent on Linux only")
def test_a_job_in_a_native_loop_ends_with_its_parent(tmp_path: Path) -> None:
    """The parent is killed and the job never gives up the interpreter: it is gone all the same, seconds later."""
    (tmp_path / "parent.py").write_text(PARENT)
    here = str(Path(__file__).parent)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([here, *sys.path]), "TMPDIR": str(tmp_path)}
    command = [sys.executable, str(tmp_path / "parent.py")]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert parent.stdout is not None
    job = int(parent.stdout.readline())
    time.sleep(2)  # into the loop
    assert Path(f"/proc/{job}").exists()
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and Path(f"/proc/{job}").exists():
        time.sleep(0.1)
    assert not Path(f"/proc/{job}").exists()
