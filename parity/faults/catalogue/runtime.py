"""Runtime and inputs: what a host does around the model, and what comes back from it."""

from __future__ import annotations

from parity.faults.fault import OUTSIDE, Fault, Subject
from parity.faults.planting import Rewrite

INPUTS = "parity.inputs"
BASE = "parity.runners.base"
DRIVER = "parity.runners.driver"
CALLED = "        made: dict[str, Tensor] = self.signatures[self._name(entry, length)](**tensors)\n"


def _returned(*lines: str) -> tuple[Rewrite, ...]:
    """``lines`` after every call of an exported file, on what it ``made``."""
    return (Rewrite("parity.runners.litert", CALLED, CALLED + "".join(f"        {line}\n" for line in lines)),)


def _anywhere(_: Subject) -> str:
    return OUTSIDE


def _text(subject: Subject) -> str | None:
    return OUTSIDE if subject.text else None


FAULTS = (
    Fault(
        name="beginning of text missing",
        group="runtime and inputs",
        what="The tokenizer is not asked for the token that begins every text; the recording says that it was.",
        at=_text,
        outcome="ERROR",
        says="stale",
        arguments=("--golden",),
        tiny_only="the sample's tokenizer adds no such token",
        rewrites=(
            Rewrite(INPUTS, "add_special_tokens=not media", "add_special_tokens=False"),
            Rewrite("parity.media.images", "add_special_tokens=not begun", "add_special_tokens=False"),
        ),
    ),
    Fault(
        name="tokens of another tokenizer",
        group="runtime and inputs",
        what="Ids are those of another vocabulary; the recording knows better.",
        at=_anywhere,
        outcome="ERROR",
        says="stale",
        arguments=("--golden",),
        rewrites=(
            Rewrite(
                INPUTS,
                "continuation = tokenizer(prompt.continuation, add_special_tokens=False).input_ids[:forced]",
                "continuation = [(7 * token + 3) % 256 for token in "
                "tokenizer(prompt.continuation, add_special_tokens=False).input_ids[:forced]]",
            ),
        ),
    ),
    Fault(
        name="output truncated",
        group="runtime and inputs",
        what="The last word of the vocabulary is cut off.",
        edge="float",
        at=_anywhere,
        outcome="ERROR",
        says="shape",
        rewrites=_returned("if 'logits' in made:", "    made['logits'] = made['logits'][..., :-1]"),
    ),
    Fault(
        name="NaN in one position",
        group="runtime and inputs",
        what="One logit of one position is not a number.",
        edge="float",
        at=_anywhere,
        outcome="ERROR",
        says="NaN or infinity",
        rewrites=_returned("if 'logits' in made:", "    made['logits'][0, 0, 0] = np.nan"),
    ),
    Fault(
        name="all logits equal",
        group="runtime and inputs",
        what="The file gives the same number for every token.",
        edge="float",
        at=_anywhere,
        outcome="ERROR",
        says="every value is the same",
        rewrites=_returned("if 'logits' in made:", "    made['logits'][:] = 0.5"),
    ),
    Fault(
        name="outputs in half precision",
        group="runtime and inputs",
        what="The runtime rounds logits to float16.",
        edge="float",
        at=_anywhere,
        rewrites=_returned(
            "if 'logits' in made:", "    made['logits'] = made['logits'].astype(np.float16).astype(np.float32)"
        ),
    ),
    Fault(
        name="the reference's own numbers",
        group="runtime and inputs",
        what="A rung silently gives back what it should be compared to.",
        at=_anywhere,
        edge="reauthored",
        outcome="ERROR",
        says="numbers",
        rewrites=(
            Rewrite(
                BASE,
                "return Recorded(inputs, Trace.load(path),",
                'path = folder / "original64.safetensors" if runner.name == "reauthored" else path\n'
                "    return Recorded(inputs, Trace.load(path),",
            ),
        ),
    ),
    Fault(
        name="another rung's numbers",
        group="runtime and inputs",
        what="The exported file is not run, the model that it was made from is run again.",
        edge="float",
        at=_anywhere,
        outcome="ERROR",
        says="numbers",
        rewrites=(
            Rewrite(
                BASE,
                "return Recorded(inputs, Trace.load(path),",
                'path = folder / "reauthored.safetensors" if runner.name == "float" else path\n'
                "    return Recorded(inputs, Trace.load(path),",
            ),
        ),
    ),
    Fault(
        name="rung skipped",
        group="runtime and inputs",
        what="A rung that was asked for is not run.",
        edge="float",
        at=_anywhere,
        outcome="ERROR",
        says="not reached",
        rewrites=(Rewrite("parity.ladder", "        if self.plan.float_file:\n", "        if False:\n"),),
    ),
    Fault(
        name="position does not advance",
        group="runtime and inputs",
        what="Every token that is decoded is given the same position.",
        at=_text,
        rewrites=(
            Rewrite(
                DRIVER,
                "        self.position += chunk.count\n",
                "        self.position += chunk.count if chunk.length > 1 else 0\n",
            ),
        ),
    ),
)
