"""Draw what signatures a kind of model exports and in which order a runtime calls them, as docs/signatures/*.svg.

    python tools/draw_signatures.py docs/signatures

Nothing is drawn from memory: names, dtypes and shapes are those of the signatures that a tiny preset exports.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import torch

from models import registry
from models.authoring.hf_config import HFConfig
from models.authoring.session import SessionInputs, session_inputs
from models.authoring.signatures import Signature, signatures
from parity.inputs import Inputs, read_prompts, tokenize
from parity.weights import resolve

#: A preset that stands for each kind of model, and the length its prefill is drawn with.
KINDS = {
    "decoder-only": ("smollm-135m", 16),
    "encoder-decoder": ("t5-small", 16),
    "vision-language": ("paligemma-2-3b-224", 48),
}
CACHE_LENGTH = 64

TEMPLATE = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {{ width }} {{ height }}" width="{{ width }}" role="img" \
font-family="system-ui, sans-serif" font-size="13">
<title>{{ title }}</title>
<rect width="100%" height="100%" fill="#ffffff"/>
<g fill="#57606a" font-size="12"><text x="24" y="30">what the host gives</text>\
<text x="{{ middle }}" y="30" text-anchor="middle">signature, in the order of calls</text>\
<text x="{{ width - 24 }}" y="30" text-anchor="end">what it gives back</text></g>
{% for box in boxes %}
<rect x="{{ middle - 110 }}" y="{{ box.y }}" width="220" height="{{ box.height }}" rx="8" fill="#f6f8fa" \
stroke="#1f2328"/>
<text x="{{ middle }}" y="{{ box.y + box.height / 2 }}" text-anchor="middle" font-weight="600" font-size="15">\
{{ box.name }}</text>
<text x="{{ middle }}" y="{{ box.y + box.height / 2 + 18 }}" text-anchor="middle" fill="#57606a" font-size="12">\
{{ box.when }}</text>
{% for chip in box.chips %}
<path d="M {{ chip.from }} {{ chip.y + 13 }} H {{ chip.to }}" stroke="{{ chip.colour }}" stroke-width="2" \
marker-end="url(#{{ chip.kind }})" fill="none"/>
<rect x="{{ chip.x }}" y="{{ chip.y }}" width="{{ chip.width }}" height="26" rx="13" fill="{{ chip.colour }}" \
fill-opacity="0.12" stroke="{{ chip.colour }}"/>
<text x="{{ chip.x + 12 }}" y="{{ chip.y + 17 }}"><tspan font-weight="600">{{ chip.name }}</tspan>\
<tspan fill="#57606a"> {{ chip.shape }}</tspan></text>
{% endfor %}
{% if not loop.last %}
<path d="M {{ middle }} {{ box.y + box.height }} v {{ gap - 6 }}" stroke="#1f2328" stroke-width="1.5" \
marker-end="url(#order)"/>
{% endif %}
{% endfor %}
<defs>{% for kind, colour in colours.items() %}<marker id="{{ kind }}" viewBox="0 0 8 8" refX="7" refY="4" \
markerWidth="6" markerHeight="6" orient="auto"><path d="M 0 0 L 8 4 L 0 8 z" fill="{{ colour }}"/></marker>\
{% endfor %}</defs>
<g font-size="12">{% for kind, x in legend %}<circle cx="{{ x }}" cy="{{ height - 22 }}" r="5" \
fill="{{ colours[kind] }}"/><text x="{{ x + 10 }}" y="{{ height - 18 }}" fill="#57606a">{{ meanings[kind] }}</text>\
{% endfor %}</g>
</svg>
"""
COLOURS = {"host": "#57606a", "encoder": "#0969da", "cache": "#8250df", "logits": "#bc4c00", "order": "#1f2328"}
MEANINGS = {
    "host": "made by the host for this call",
    "encoder": "made by the encoder, kept",
    "cache": "the cache, handed from call to call",
    "logits": "read by the host",
}
WIDTH, CHIP, ROW, GAP = 1060, 300, 32, 34


@dataclass(frozen=True)
class Row:
    """A named tensor, or a group of them that layers have one each of."""

    kind: str
    name: str
    shape: str


def rows(tensors: dict[str, torch.Tensor], encoded: Sequence[str]) -> Iterator[Row]:
    """One for each name; names that end in a layer's number are folded into one."""
    folded: dict[str, list[torch.Tensor]] = {}
    for name, tensor in tensors.items():
        stem, _, layer = name.rpartition("_")
        folded.setdefault(f"{stem}_i" if layer.isdigit() else name, []).append(tensor)
    for name, found in folded.items():
        cache = name.startswith("kv_cache_")
        kind = "cache" if cache else "logits" if name == "logits" else "encoder" if name in encoded else "host"
        dtype = str(found[0].dtype).removeprefix("torch.")
        yield Row(kind, name, f"{dtype} {list(found[0].shape)}" + (f" x {len(found)}" if len(found) > 1 else ""))


def inputs_of(name: str) -> tuple[registry.Model, Inputs]:
    """The tiny preset and its default prompts."""
    model = registry.get(name)
    folder = resolve(model, "tiny").folder
    return model, tokenize(
        read_prompts(model.prompts(tiny=True)), folder, model.family.config_from(HFConfig.load(folder))
    )


def exported(name: str, length: int) -> list[Signature]:
    """What a check of the preset exports, encoders first."""
    model, inputs = inputs_of(name)
    loaded = model.family.load(resolve(model, "tiny").folder)
    sessions: list[SessionInputs] = [
        session_inputs(loaded.config, prompt.prompt, prompt.media, prompt.until(8)) for prompt in inputs.prompts
    ]
    return list(
        signatures(loaded, prefill_lengths=[length], cache_length=CACHE_LENGTH, prefill_logits=True, sessions=sessions)
    )


def when(name: str, before: list[str]) -> str:
    """How often a runtime calls it."""
    if name.startswith("encode"):
        return "once for each source"
    if name.endswith("_pixel"):
        return "for a prompt with pictures"
    if name.startswith("prefill"):
        other = any(earlier.endswith("_pixel") for earlier in before)
        return "or, for a prompt without pictures" if other else "until the prompt is in the cache"
    further = any(earlier.startswith("prefill") for earlier in before)
    return "for every further token" if further else "for every token, the start first"


def draw(name: str, length: int) -> str:
    """The picture of one kind of model."""
    boxes, y, encoded = [], 48, list[str]()
    for signature in exported(name, length):
        with torch.no_grad():
            made = signature.entry(signature.inputs)
        taken, given = (
            list(rows(signature.inputs, encoded)),
            list(rows(made, [*made] if "encode" in signature.name else [])),
        )
        if signature.name.startswith("encode"):
            encoded += [row.name for row in given]
            given = [Row("encoder", row.name, row.shape) for row in given]
        height = max(ROW * max(len(taken), len(given)) + 12, 64)
        middle = WIDTH // 2
        chips = [
            {
                **vars(row),
                "x": x,
                "y": y + 8 + ROW * i,
                "from": start,
                "to": end,
                "width": CHIP,
                "colour": COLOURS[row.kind],
            }
            for listed, x, start, end in (
                (taken, 24, 24 + CHIP, middle - 112),
                (given, WIDTH - 24 - CHIP, middle + 110, WIDTH - 26 - CHIP),
            )
            for i, row in enumerate(listed)
        ]
        boxes.append(
            {
                "name": signature.name,
                "when": when(signature.name, [box["name"] for box in boxes]),
                "y": y,
                "height": height,
                "chips": chips,
            }
        )
        y += height + GAP
    used = [kind for kind in MEANINGS if any(chip["kind"] == kind for box in boxes for chip in box["chips"])]
    return (
        jinja2.Environment(autoescape=True)
        .from_string(TEMPLATE)
        .render(
            boxes=boxes,
            colours=COLOURS,
            gap=GAP,
            height=y + 16,
            legend=[(kind, 34 + 260 * i) for i, kind in enumerate(used)],
            meanings=MEANINGS,
            middle=WIDTH // 2,
            title=f"The signatures of {name} and the order of their calls",
            width=WIDTH,
        )
    )


def main(folder: Path) -> None:
    """Draw every kind."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind, (name, length) in KINDS.items():
        (folder / f"{kind}.svg").write_text(draw(name, length), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
