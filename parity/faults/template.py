"""A Python that has imported the heavy libraries and nothing of this project, to fork planted runs from.

Importing PyTorch, transformers and the converter takes longer than a whole check of a tiny model. So it is done once.
A run is a process of its own all the same, in which every module of this project is imported anew, with what is
planted in it; only its jobs are forked from it directly instead of from a server, which would import everything again.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from select import select
from types import TracebackType
from typing import Any, Self

from parity.faults.planting import activate

LIBRARIES = (
    "numpy",
    "torch",
    "transformers.modeling_utils",
    "transformers.generation",
    "litert_torch.backend.lowerings",
    "ai_edge_quantizer.quantizer",
    "ai_edge_litert.interpreter",
    "rich.console",
    "typer",
)
#: What of this project is imported before anything is planted, and so can have nothing planted in it.
OURS = ("parity", "parity.faults", "parity.faults.planting", "parity.faults.template")


class Template:
    """The process, for as long as the ``with`` block."""

    def __enter__(self) -> Self:
        self._log = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from parity.faults.template import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONDONTWRITEBYTECODE": "1"},
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()
        self._log.close()

    def run(self, folder: Path, arguments: Sequence[str], patience: float) -> int | None:
        """``parity`` with these arguments and with what is planted in ``folder``; its exit code.

        ``None`` if it has not ended after ``patience`` seconds; it has been ended then. What it prints is in the files
        ``stdout`` and ``stderr`` of the folder.
        """
        self._send({"folder": str(folder), "arguments": list(arguments)})
        pid = self._receive(None)
        code = self._receive(patience)
        if code is None:
            os.killpg(int(pid or 0), signal.SIGKILL)
            self._receive(None)
        return code

    def _send(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()

    def _receive(self, patience: float | None) -> int | None:
        assert self._process.stdout is not None
        if not select([self._process.stdout], [], [], patience)[0]:
            return None
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            raise RuntimeError(f"the process that runs are forked from has died: {self._log.read()[-500:]!r}")
        return int(line)


def serve() -> None:
    """The process: one run after another, as asked for on standard input, until that ends."""
    for name in LIBRARIES:
        importlib.import_module(name)
    if early := [name for name in sys.modules if name.startswith(("models.", "parity.")) and name not in OURS]:
        raise RuntimeError(f"{early[0]} was imported before anything could be planted in it")
    for line in sys.stdin:
        asked = json.loads(line)
        pid = os.fork()
        if not pid:
            _run(Path(asked["folder"]), asked["arguments"])
        _tell(pid)
        _, status = os.waitpid(pid, 0)
        _tell(os.waitstatus_to_exitcode(status))


def _tell(number: int) -> None:
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


def _run(folder: Path, arguments: Sequence[str]) -> None:
    """A run, in the process that was forked for it."""
    code = 1
    try:
        os.setsid()
        for descriptor, name in ((0, os.devnull), (1, folder / "stdout"), (2, folder / "stderr")):
            opened = os.open(name, os.O_RDWR | os.O_CREAT)
            os.dup2(opened, descriptor)
            os.close(opened)
        activate(folder)
        direct = multiprocessing.get_context("fork")
        multiprocessing.get_context = lambda _=None: direct  # type: ignore[assignment]
        cli = importlib.import_module("parity.cli")
        cli.main(arguments)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:  # noqa: BLE001  (whatever it is, this process must not go on as its parent)
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
