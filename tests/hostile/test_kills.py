"""Processes killed at random moments: nothing torn, nobody left behind, and the next run goes through.

A round is one command in folders of its own, killed a few times (the command itself, or one of its jobs), then run to
its end. ``pytest tests/hostile/test_kills.py --kills=200`` is the long version, ``--draw`` another draw of moments.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from processes import jobs, session, until

from models.authoring.checkpoint import SINGLE
from parity.artifacts.cache import ArtifactCache
from parity.files import sha256_of
from parity.golden import Recording
from parity.weights.kept import sealed

MODEL = "smollm-135m"
#: Kills before a run must go through.
ROUND = 10
COMMANDS = {
    "check": ("check", MODEL, "--json", "out/r.json", "--html", "out/r.html"),
    "convert": ("convert", MODEL, "-o", "out/m.tflite", "--prefill", "8", "--kv-cache", "64"),
    "record": ("golden", "record", MODEL, "--golden-dir", "out"),
    "draw": ("weights", MODEL),
}
#: Seconds within which whatever a killed command had started must be gone. Jobs are gone at once; the server that they
#: are forked from first ends its imports, which is a matter of seconds unless the machine is busy.
GONE = 120


@dataclass(frozen=True)
class Ended:
    """How a run ended; without a ``code`` it was killed."""

    code: int | None
    err: str
    seconds: float


@dataclass
class Place:
    """The folders of a round: what is made, the cache, and the temporary folder."""

    folder: Path
    command: Sequence[str]
    environment: dict[str, str] = field(init=False)
    temporary: Path = field(init=False)

    def __post_init__(self) -> None:
        for name in ("out", "cache"):
            (self.folder / name).mkdir(parents=True)
        # The server of a run listens at a path in there, which must be short.
        self.temporary = Path(tempfile.mkdtemp(prefix="kills-", dir="/tmp"))
        own = {"XDG_CACHE_HOME": str(self.folder / "cache"), "TMPDIR": str(self.temporary), "COLUMNS": "200"}
        own["PARITY_CACHE_GB"] = "1"
        paths = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.environment = {**os.environ, **own, "PYTHONPATH": os.pathsep.join(paths)}

    def start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "parity", *self.command],
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment,
            start_new_session=True,
        )

    def run(self) -> Ended:
        """To its end."""
        began = time.monotonic()
        process = self.start()
        err = process.communicate(timeout=600)[1]
        return Ended(process.returncode, err, time.monotonic() - began)

    def kill_command(self, delay: float) -> Ended:
        """Kill the command itself ``delay`` seconds after its start, and see that nothing of it goes on."""
        process = self.start()
        try:
            process.wait(delay)
        except subprocess.TimeoutExpired:
            process.kill()
        err = process.communicate()[1] if until(lambda: not session(process.pid), GONE) else ""
        left = session(process.pid)
        for row in left:
            os.kill(row.pid, signal.SIGKILL)
        assert left == [], f"{len(left)} processes went on after the command was killed"
        return Ended(None if process.returncode == -signal.SIGKILL else process.returncode, err, delay)

    def kill_job(self, delay: float, draw: random.Random) -> tuple[bool, Ended]:
        """Kill one of its jobs ``delay`` seconds after its start or as soon as there is one; then wait for the end."""
        process = self.start()
        began = time.monotonic()
        until(lambda: process.poll() is not None, delay)
        until(lambda: jobs(process.pid) or process.poll() is not None, 120)
        killed = False
        if rows := jobs(process.pid):
            try:
                os.kill(draw.choice(rows).pid, signal.SIGKILL)
                killed = True
            except ProcessLookupError:
                pass  # it was done just now
        err = process.communicate(timeout=600)[1]
        assert until(lambda: not session(process.pid), GONE), "processes went on after the command's end"
        return killed, Ended(process.returncode, err, time.monotonic() - began)

    def assert_nothing_torn(self) -> None:
        """Whatever is in its place is whole: reports, converted files, recordings, drawn checkpoints."""
        for path in (self.folder / "out").glob("*.json"):
            assert json.loads(path.read_text())["verdict"] in {"PASS", "ERROR"}
        for path in (self.folder / "out").glob("*.html"):
            assert path.read_text().rstrip().endswith("</html>")
        for path in (self.folder / "out").glob("*.tflite"):
            assert path.stat().st_size == WHOLE_FILE.setdefault("bytes", path.stat().st_size)
        for path in (self.folder / "out").glob("*/*/*.safetensors"):
            assert Recording("torn?", path).facts["logits_sha256"] == sha256_of([path])
        for path in (self.folder / "cache").glob("parity/weights/tiny/[!.]*"):
            assert sealed(path), f"{path} is torn"
            assert (path / SINGLE).is_file()
        kept, damage = ArtifactCache(self.folder / "cache" / "parity" / "artifacts", 1_000_000_000), []
        for entry in kept.entries():
            assert kept.take(entry.key, self.folder / "taken", damage.append), damage

    def assert_nothing_left_over(self) -> None:
        """After a run that went through there are results and nothing else.

        But for PyTorch's cache, and the empty folder of each killed command in which Python's server of processes had
        its socket.
        """
        foreign = ("torchinductor_", "pymp-")
        assert [path for path in self.temporary.iterdir() if not path.name.startswith(foreign)] == []
        assert [path for part in ("out", "cache") for path in (self.folder / part).rglob("*.part")] == []

    def reset(self, name: str) -> None:
        """Take away what a run that went through has made, where the next would find it done already."""
        for path in (self.folder / "out").glob("*/*/*.safetensors"):
            path.unlink()
            path.with_suffix(".json").unlink()
        for path in (self.folder / "cache").glob("parity/artifacts/[!.]*"):
            shutil.rmtree(path)
        if name == "draw":
            for path in (self.folder / "cache").glob("parity/weights/tiny/[!.]*"):
                shutil.rmtree(path)


#: Bytes of the converted file of a whole run; a shorter one is torn.
WHOLE_FILE: dict[str, int] = {}


@pytest.fixture(scope="module")
def durations() -> dict[str, float]:
    """Seconds that each command takes; a guess until one has been run to its end."""
    return dict.fromkeys(COMMANDS, 10.0)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Rounds of every command in turn until there are as many kills as asked for."""
    kills = metafunc.config.getoption("--kills")
    shares = [kills // len(COMMANDS) + (number < kills % len(COMMANDS)) for number in range(len(COMMANDS))]
    rounds = [
        (name, start, min(ROUND, share - start))
        for name, share in zip(COMMANDS, shares, strict=True)
        for start in range(0, share, ROUND)
    ]
    ids = [f"{name}-{start}-{start + count}" for name, start, count in rounds]
    metafunc.parametrize(("name", "start", "count"), rounds, ids=ids)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads the process table in /proc")
def test_killed_at_random_moments(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    durations: dict[str, float],
    tally: Counter[str],
    name: str,
    start: int,
    count: int,
) -> None:
    """Killed ``count`` times, then run to the end, which leaves the same as if nothing had happened."""
    draw = random.Random(f"{request.config.getoption('--draw')}/{name}/{start}")
    place = Place(tmp_path / name, COMMANDS[name])
    outcomes: list[str] = []
    while len(outcomes) < count:
        place.reset(name)
        delay = draw.uniform(0.05, 1) * durations[name]
        if (start + len(outcomes) + list(COMMANDS).index(name)) % 2:
            killed, ended = place.kill_job(delay, draw)
            what = outcome_of_killed_job(place, name, ended) if killed else None
        else:
            ended = place.kill_command(delay)
            what = "command killed" if ended.code is None else None
        place.assert_nothing_torn()
        if what:
            outcomes.append(what)
        else:  # it was faster than the kill
            assert ended.code == 0, ended.err
            durations[name] = min(durations[name], ended.seconds)
    tally.update(f"{name}: {what}" for what in outcomes)
    place.reset(name)
    ended = place.run()
    assert ended.code == 0, ended.err
    durations[name] = ended.seconds
    place.assert_nothing_torn()
    place.assert_nothing_left_over()


def outcome_of_killed_job(place: Place, name: str, ended: Ended) -> str:
    """A killed job ends the command with ERROR, said in a line or in the report; one that was done changes nothing."""
    assert "Traceback" not in ended.err, ended.err
    if ended.code == 0:
        return "job killed when it was done, PASS"
    assert ended.code == 3, ended.err
    if name == "check":
        report = json.loads((place.folder / "out" / "r.json").read_text())
        assert report["verdict"] == "ERROR"
        causes = [edge["cause"] for edge in report["edges"] if edge["verdict"] == "ERROR"]
        assert causes
        assert any("killed by SIGKILL" in cause for cause in causes), causes
    else:
        assert "killed by SIGKILL" in ended.err, ended.err
    return "job killed, ERROR"
