"""Recordings of the oracle that gate tomorrow's conversion without the original.

A recording is ``golden/<preset>/<weights>/<prompt set>.safetensors``: sketches of the oracle's float64 logits, and what
it generated. Beside it is a ``.json`` that says what it was made from. If any of that has changed since, the recording
is stale, and stale is an error. It answers one question: is a float64 trace that was computed today the oracle's? A
trace that is, our own model's, takes the oracle's place for every other rung.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import parity
from models import registry
from models.errors import UnknownModelError
from parity import environment
from parity.compare.sketch import parameters
from parity.errors import GoldenError, UsageError
from parity.files import sha256_of, whole_file, write_json
from parity.golden.sketched import Golden
from parity.inputs import Inputs, read_prompts
from parity.situations import is_made
from parity.trace import Trace
from parity.weights import Weights
from parity.weights.published import CONFIGURATION

#: Of the sidecar and of the numbers beside it.
SCHEMA_VERSION = 3


@dataclass(frozen=True)
class Reference:
    """What rungs are compared to."""

    name: str
    trace: Trace


@dataclass(frozen=True)
class Recording:
    """One recording on disk; ``name`` is ``<preset>/<weights>/<prompt set>``."""

    name: str
    path: Path

    @property
    def sidecar(self) -> Path:
        return self.path.with_suffix(".json")

    @property
    def facts(self) -> dict[str, Any]:
        """The sidecar, of whatever schema it is.

        Raises:
            GoldenError: missing or not a sidecar.
        """
        try:
            facts = dict(json.loads(self.sidecar.read_text(encoding="utf-8")))
            digest = facts.pop("sha256")
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise GoldenError(f"{self.sidecar} is not a recording's sidecar ({error}); record it again") from None
        if digest != _digest(facts):
            raise GoldenError(f"{self.sidecar} has been edited since it was recorded; record it again")
        return facts

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(path.stat().st_size for path in (self.path, self.sidecar) if path.is_file())


@dataclass(frozen=True)
class GoldenStore:
    """A folder of recordings."""

    folder: Path

    @classmethod
    def default(cls) -> GoldenStore:
        """``golden/`` of the source checkout this package runs from, else of the working directory."""
        beside = Path(parity.__file__).parents[1] / "golden"
        return cls(beside if beside.is_dir() else Path("golden"))

    def of(self, model: str, weights: Weights, prompts: str) -> Recording:
        """Where the recording of these is, whether or not it exists."""
        name = f"{model}/{weights.label}/{prompts}"
        return Recording(name, self.folder / f"{name}.safetensors")

    def all(self) -> Iterator[Recording]:
        """Every recording in the folder, by name."""
        for path in sorted(self.folder.glob("*/*/*.safetensors")):
            yield Recording("/".join(path.relative_to(self.folder).with_suffix("").parts), path)

    def record(self, model: str, weights: Weights, inputs: Inputs, trace: Trace) -> Recording:
        """Store what the oracle computed and said; the same trace gives the same file.

        The sidecar is put in place first: a recording is there once its numbers are, so that one whose making was cut
        short between the two is no recording yet and nothing that must be overwritten.

        Raises:
            GoldenError: the trace is not in float64, is not finite, or does not answer ``inputs``.
        """
        recording = self.of(model, weights, inputs.name)
        golden = Golden.of(recording.name, trace)
        golden.check(inputs)
        with whole_file(recording.path) as numbers:
            golden.save(numbers)
            self._describe(recording, numbers, weights, inputs)
        return recording

    def _describe(self, recording: Recording, numbers: Path, weights: Weights, inputs: Inputs) -> None:
        facts: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "precision": "float64",
            "sketch": parameters(),
            "identity": identity(weights, inputs),
            "logits_sha256": sha256_of([numbers]),
            "positions": inputs.positions,
            "prompts_from_file": inputs.source.endswith(".jsonl"),
            "weights_revision": weights.revision,
            "versions": environment.versions(),
        }
        facts["sha256"] = _digest(facts)
        write_json(recording.sidecar, facts)

    def replay(self, model: str, weights: Weights, inputs: Inputs) -> Golden:
        """The recording, for today's exact port to be compared with.

        Raises:
            GoldenError: there is none, it is damaged, or it is stale; the message says which command renews it.
        """
        recording = self.of(model, weights, inputs.name)
        if not recording.path.is_file():
            raise GoldenError(
                f"{recording.path} is not there; record it with `{self._command(model, weights, inputs)}`"
            )
        self.verify(model, weights, inputs)
        golden = Golden.load(recording.name, recording.path)
        golden.check(inputs)
        return golden

    def verify(self, model: str, weights: Weights, inputs: Inputs) -> dict[str, Any]:
        """The sidecar of a recording that still is what it says.

        Raises:
            GoldenError: it was made from something else than what is there now, or has been damaged since; the message
                names what changed and the command that renews the recording.
        """
        recording = self.of(model, weights, inputs.name)
        renewal = f"renew it with `{self._command(model, weights, inputs)} --overwrite`"
        facts = recording.facts
        version, recorded = facts.get("schema_version"), facts.get("identity", {})
        if version != SCHEMA_VERSION:
            raise GoldenError(f"{recording.name} is stale: it is of schema {version}, not {SCHEMA_VERSION}; {renewal}")
        if facts.get("sketch") != parameters() or facts.get("precision") != "float64":
            raise GoldenError(f"{recording.name} is stale: numbers are no longer kept in its way; {renewal}")
        if changed := [what for what, now in identity(weights, inputs).items() if recorded.get(what) != now]:
            raise GoldenError(f"{recording.name} is stale: {' and '.join(changed)} changed since; {renewal}")
        if facts.get("logits_sha256") != sha256_of([recording.path]):
            raise GoldenError(f"{recording.path} is not the file its sidecar describes; {renewal}")
        return facts

    def _command(self, model: str, weights: Weights, inputs: Inputs) -> str:
        source = weights.asked or (str(weights.folder) if weights.kind == "path" else weights.kind)
        words = ("parity", "golden", "record", model, "--weights", source, "--prompts", inputs.source)
        command = shlex.join(words)
        return command if self == GoldenStore.default() else f"{command} --golden-dir {shlex.quote(str(self.folder))}"

    def unused(self) -> list[Recording]:
        """Recordings that no check would ever read: of models, prompt sets or drawn weights that no longer exist."""
        return [recording for recording in self.all() if not _in_use(recording)]


def identity(weights: Weights, inputs: Inputs) -> dict[str, str]:
    """Hashes of everything that decides what the original computes on these inputs."""
    media = inputs.media_sha256
    described = [path for name in CONFIGURATION if (path := weights.folder / name).is_file()]
    return {
        "weights": weights.sha256,
        "config": sha256_of(described),
        "tokenizer": inputs.tokenizer_sha256,
        "prompts": inputs.sha256,
        "token ids": inputs.token_ids_sha256,
        **({"media": media} if media else {}),
    }


def _digest(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _in_use(recording: Recording) -> bool:
    model, _, prompts = recording.name.split("/")
    try:
        registry.get(model)
        if recording.facts["prompts_from_file"] or is_made(prompts):
            return True  # the file is its owner's business, and situations are made for any model
        read_prompts(prompts)
    except (UnknownModelError, UsageError, GoldenError):
        return False
    return True
