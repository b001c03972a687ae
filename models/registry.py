"""Which families exist. A new one is one line here."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module

from models.authoring.config import DecoderConfig
from models.authoring.family import Family, Preset
from models.authoring.hf_config import HFConfig
from models.errors import UnknownModelError

FAMILIES = {
    "llama": "models.llama",
    "qwen2": "models.qwen2",
    "gemma": "models.gemma",
    "phi": "models.phi",
    "openelm": "models.openelm",
    "t5": "models.t5",
    "moonshine": "models.moonshine",
    "paligemma": "models.paligemma",
    "qwen2_5_vl": "models.qwen_vl",
}


@dataclass(frozen=True)
class Model:
    """A preset and the family it belongs to."""

    family: Family
    preset: Preset

    @property
    def name(self) -> str:
        return self.preset.name

    def prompts(self, *, tiny: bool) -> str:
        """The prompt set it is checked on unless told otherwise."""
        return (self.preset.tiny_prompts if tiny else None) or self.family.prompts

    @property
    def encodes(self) -> bool:
        """Whether an encoder is part of it, whose output is compared as well."""
        source = HFConfig(self.preset.values(tiny=True), self.name)
        return not isinstance(self.family.config_from(source), DecoderConfig)


def family(name: str) -> Family:
    """The family called ``name``.

    Raises:
        UnknownModelError: no such family.
    """
    if name not in FAMILIES:
        raise UnknownModelError(f"no family is called {name!r}; there are {', '.join(FAMILIES)}")
    found: Family = import_module(FAMILIES[name]).FAMILY
    return found


def models() -> Iterator[Model]:
    """Every preset of every family, in table order."""
    for name in FAMILIES:
        found = family(name)
        yield from (Model(found, preset) for preset in found.presets)


def get(name: str) -> Model:
    """The model a person means: a preset, an alias, or a family (its smallest preset).

    Raises:
        UnknownModelError: nothing is called so; the message names what is close.
    """
    if name in FAMILIES:
        found = family(name)
        return Model(found, min(found.presets, key=lambda preset: preset.parameters))
    names: dict[str, Model] = {}
    for model in models():
        names |= dict.fromkeys((model.name, *model.preset.aliases), model)
    if name in names:
        return names[name]
    near = difflib.get_close_matches(name, [*names, *FAMILIES], n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(near)}?" if near else "`parity models` lists them"
    raise UnknownModelError(f"no model is called {name!r}; {hint}")
