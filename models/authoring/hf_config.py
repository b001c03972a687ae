"""Strict reading of a Hugging Face ``config.json``: every key is understood, expected, or known to be inert.

A key that nobody asked for is refused by name, because it may change the maths. Old spellings (``rope_theta``,
``rope_scaling``, ``torch_dtype``) and new ones (``rope_parameters``, ``dtype``) are both read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.authoring.config import Activation, Llama3Scaling, LongRopeScaling, RopeConfig
from models.errors import ConfigError

#: Keys that cannot change what the model computes in inference.
INERT = frozenset(
    {
        "_attn_implementation_autoset",
        "_name_or_path",
        "architectures",
        "attention_dropout",
        "attn_implementation",
        "auto_map",
        "bos_token_id",
        "chunk_size_feed_forward",
        "dtype",
        "embd_pdrop",
        "eos_token_id",
        "finetuning_task",
        "hidden_dropout",
        "id2label",
        "initializer_range",
        "label2id",
        "model_type",
        "output_attentions",
        "output_hidden_states",
        "pad_token_id",
        "problem_type",
        "resid_pdrop",
        "return_dict",
        "tokenizer_class",
        "torch_dtype",
        "transformers.js_config",
        "transformers_version",
        "unk_token_id",
        "unsloth_fixed",
        "unsloth_version",
        "use_cache",
    }
)

MOST_LAYERS = 1000

_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}

_REQUIRED = object()


class HFConfig:
    """A configuration as key/value pairs that remembers which keys were asked for; ``finish`` refuses the rest."""

    def __init__(self, values: Mapping[str, Any], source: str) -> None:
        self.source = source
        self._values = dict(values)
        self._known = set(INERT)

    @classmethod
    def load(cls, folder: Path) -> HFConfig:
        """Read ``folder/config.json``.

        Raises:
            ConfigError: missing, unreadable, not a JSON object, or without a ``model_type``.
        """
        path = folder / "config.json"
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConfigError(f"{path} is not there; point to a checkpoint folder in the hub's layout") from None
        except (OSError, ValueError, RecursionError) as error:
            raise ConfigError(f"{path} cannot be read ({error}); fetch the file again") from None
        if not isinstance(values, dict) or not isinstance(values.get("model_type"), str):
            raise ConfigError(f"{path} has no model_type; it is not a model's configuration")
        return cls(values, str(path))

    @property
    def model_type(self) -> str:
        return str(self._values["model_type"])

    def take(self, key: str, kind: type, default: Any = _REQUIRED) -> Any:
        """The value of ``key``, which must be a ``kind`` (an int passes as a float, never a bool as a number)."""
        self._known.add(key)
        value = self._values.get(key)
        if value is None:  # null means the default, as in transformers
            value = default
        if value is _REQUIRED:
            raise ConfigError(f"{self.source}: {key} is missing; add it with the published value")
        if value is None and default is None:
            return None
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value) if abs(value) < 2**63 else math.inf
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise ConfigError(f"{self.source}: {key} is {value!r}, expected {kind.__name__}; fetch the file again")
        return value

    def positive(self, key: str, default: Any = _REQUIRED) -> int:
        """A positive integer, such as a count or a width."""
        value: int = self.take(key, int, default)
        if not 1 <= value < 2**31:
            raise ConfigError(f"{self.source}: {key} is {value}, expected a positive integer; fetch the file again")
        return value

    def natural(self, key: str, default: Any = _REQUIRED) -> int:
        """A token id: zero or more."""
        value: int = self.take(key, int, default)
        if not 0 <= value < 2**31:
            raise ConfigError(f"{self.source}: {key} is {value}, expected zero or more; fetch the file again")
        return value

    def token_ids(self, key: str) -> frozenset[int]:
        """Token ids of which there may be one, a list of them, or none."""
        self._known.add(key)
        value = self._values.get(key)
        listed = value if isinstance(value, list) else [] if value is None else [value]
        return frozenset(HFConfig({key: each}, self.source).natural(key) for each in listed)

    def layers(self, key: str, default: Any = _REQUIRED) -> int:
        """A number of layers; more than any model has is a damaged file, and would exhaust memory."""
        value = self.positive(key, default)
        self.require(value <= MOST_LAYERS, f"{key} is {value}, more than any model has")
        return value

    def number(self, key: str, default: Any = _REQUIRED, *, zero: bool = False) -> float:
        """A finite positive number; ``zero`` allows 0 as well."""
        value: float = self.take(key, float, default)
        if not math.isfinite(value) or value < 0 or (value == 0 and not zero):
            raise ConfigError(
                f"{self.source}: {key} is {value}, expected a finite positive number; fetch the file again"
            )
        return value

    def optional_number(self, key: str, default: float) -> float | None:
        """A finite positive number that an explicit null switches off."""
        if key in self._values and self._values[key] is None:
            self._known.add(key)
            return None
        return self.number(key, default)

    def numbers(self, key: str, length: int, *, why: str) -> tuple[float, ...]:
        """A list of ``length`` finite positive numbers; ``why`` says where the length comes from."""
        values = self.take(key, list)
        self.require(len(values) == length, f"{key} has {len(values)} entries, {why} asks for {length}")
        return tuple(HFConfig({key: value}, self.source).number(key) for value in values)

    def counts(self, key: str, length: int, default: Any = _REQUIRED, *, of: str = "layers") -> tuple[int, ...]:
        """A list of ``length`` positive integers, one for each ``of``."""
        values = self.take(key, list, default)
        self.require(len(values) == length, f"{key} has {len(values)} entries for {length} {of}")
        return tuple(HFConfig({key: value}, self.source).positive(key) for value in values)

    def indexes(self, key: str) -> tuple[int, ...]:
        """A list of layers, counted from 0; one beyond the last means none, as in the originals."""
        values: list[int] = self.take(key, list)
        return tuple(HFConfig({key: value}, self.source).natural(key) for value in values)

    def layer_types(self, layers: int, default: list[str]) -> list[str]:
        """Which attention every layer has: ``full_attention`` or ``sliding_attention``."""
        kinds: list[str] = self.take("layer_types", list, default)
        self.require(len(kinds) == layers, f"layer_types has {len(kinds)} entries for {layers} layers")
        unknown = [kind for kind in kinds if kind not in ("full_attention", "sliding_attention")]
        self.require(not unknown, f"layer_types holds {unknown[:1]}, which is not supported")
        return kinds

    def expect(self, key: str, *supported: Any) -> None:
        """Accept ``key`` only when absent, null, or one of ``supported``; anything else would change the maths."""
        self._known.add(key)
        value = self._values.get(key)
        if value is not None and value not in supported:
            wanted = " or ".join(map(repr, supported)) or "null"
            raise ConfigError(
                f"{self.source}: {key} = {value!r} changes the maths; only {wanted} is supported; fetch the file again"
            )

    def require(self, condition: bool, otherwise: str) -> None:
        """Refuse values that contradict each other."""
        if not condition:
            raise ConfigError(f"{self.source}: {otherwise}; fetch the file again")

    def ignore(self, *keys: str) -> None:
        """Accept keys that have no effect in this family; the family says why beside the call."""
        self._known.update(keys)

    def activation(self, key: str, default: Any = _REQUIRED) -> Activation:
        """The activation function that ``key`` names."""
        name = self.take(key, str, default)
        if name not in _ACTIVATIONS:
            raise ConfigError(
                f"{self.source}: {key} = {name!r} is not supported, only {', '.join(_ACTIVATIONS)}; add it to MLP"
            )
        return _ACTIVATIONS[name]

    def rope(
        self,
        head_dim: int,
        *,
        partial: float | None = None,
        default_theta: float = 10000.0,
        original_default: int | None = None,
        plain: tuple[str, ...] = ("default",),
        default_sections: list[int] | None = None,
    ) -> RopeConfig:
        """The rotary embedding, from either spelling, over heads of ``head_dim`` channels.

        ``partial`` is the architecture's default for ``partial_rotary_factor``; where it heeds no such key, the key is
        refused. ``original_default`` is its default for an outer ``original_max_position_embeddings``; ``plain`` are
        its words for no scaling, the first when nothing is said. Where positions have several axes,
        ``default_sections`` is what each has of the channels unless ``mrope_section`` says it.
        """
        self._known.update(("rope_parameters", "rope_scaling", "rope_theta", "partial_rotary_factor"))
        rope: dict[str, Any] = {}
        for spelling in ("rope_scaling", "rope_parameters"):
            value = self._values.get(spelling)
            if value is not None and not isinstance(value, dict):
                raise ConfigError(f"{self.source}: {spelling} is {value!r}, expected an object; fetch the file again")
            if value and rope and value != rope:
                raise ConfigError(f"{self.source}: rope_scaling and rope_parameters differ; keep the one that is true")
            rope.update(value or {})
        for key in ("rope_theta", "partial_rotary_factor"):
            if self._values.get(key) is not None:
                rope.setdefault(key, self._values[key])
        nested = HFConfig(rope, f"{self.source}: rope_parameters")
        nested._known = set()  # inside this object nothing is inert
        kind = nested.take("rope_type", str, nested.take("type", str, plain[0]))
        theta = nested.number("rope_theta", default_theta)
        factor = nested.number("partial_rotary_factor", partial or 1.0)
        self.require(
            partial is not None or factor == 1.0, f"partial_rotary_factor {factor} is not heeded by this architecture"
        )
        rotary_dim = int(head_dim * factor)
        if rotary_dim < 2 or rotary_dim % 2 or rotary_dim > head_dim:
            raise ConfigError(
                f"{self.source}: {rotary_dim} of {head_dim} rotated channels is no even part of a head; fetch it again"
            )
        scaling: Llama3Scaling | LongRopeScaling | None = None
        if kind == "longrope":
            scaling = self._longrope(nested, rotary_dim // 2, original_default)
        elif kind == "llama3":
            scaling = Llama3Scaling(
                factor=nested.number("factor"),
                low_freq_factor=nested.number("low_freq_factor"),
                high_freq_factor=nested.number("high_freq_factor"),
                original_max_positions=nested.positive("original_max_position_embeddings"),
            )
            ordered = scaling.low_freq_factor < scaling.high_freq_factor
            self.require(ordered, "low_freq_factor is not below high_freq_factor")
        elif kind not in plain:
            known = ", ".join((*plain, "llama3", "longrope"))
            raise ConfigError(f"{self.source}: rope_type {kind!r} is not supported, only {known}; teach the family it")
        sections = self._sections(nested, kind, rotary_dim // 2, default_sections) if default_sections else None
        nested.finish()
        return RopeConfig(theta=theta, rotary_dim=rotary_dim, scaling=scaling, sections=sections)

    def _sections(self, nested: HFConfig, kind: str, pairs: int, default: list[int]) -> tuple[int, ...]:
        """How many pairs of channels each axis of positions has."""
        self.require(kind not in ("llama3", "longrope"), f"rope_type {kind!r} is not known for positions on axes")
        sections = nested.counts("mrope_section", len(default), default, of="axes")
        self.require(sum(sections) == pairs, f"mrope_section {list(sections)} does not add up to {pairs} pairs")
        return sections

    def _longrope(self, nested: HFConfig, pairs: int, original_default: int | None) -> LongRopeScaling:
        """LongRoPE's factors; the attention factor follows from the two context lengths unless it is given."""
        key = "original_max_position_embeddings"  # some files say it inside, some outside, some in both places
        outside = self.positive(key, original_default) if self.has(key) or original_default else None
        original = nested.positive(key, outside or _REQUIRED)
        self.require(outside in (None, original), f"{key} is given twice and differs")
        self.require(original > 1, f"{key} is {original}, which has no logarithm to divide by")
        ratio = nested.number("factor", self.positive("max_position_embeddings") / original)
        implied = 1.0 if ratio <= 1 else math.sqrt(1 + math.log(ratio) / math.log(original))
        why = f"a rotated size of {2 * pairs}"
        return LongRopeScaling(
            short_factors=nested.numbers("short_factor", pairs, why=why),
            long_factors=nested.numbers("long_factor", pairs, why=why),
            original_max_positions=original,
            attention_factor=nested.number("attention_factor", implied),
        )

    def nested(self, key: str, defaults: Mapping[str, Mapping[str, Any]]) -> HFConfig:
        """The object under ``key``, a configuration of its own; ``finish`` it as well.

        Such objects leave out what is the default of their class: ``defaults``, by ``model_type``, of which the first
        is that of an object that does not say.
        """
        values: dict[str, Any] = self.take(key, dict)
        kind = values.get("model_type") or next(iter(defaults))
        self.require(kind in defaults, f"{key} is of model_type {kind!r}, not {' or '.join(defaults)}")
        return HFConfig({"model_type": kind, **defaults[kind], **values}, f"{self.source}: {key}")

    def has(self, key: str) -> bool:
        """Whether the key is there and not null."""
        return self._values.get(key) is not None

    def finish(self) -> None:
        """Refuse keys that nobody asked for.

        Raises:
            ConfigError: names the first such key.
        """
        unknown = sorted(set(self._values) - self._known)
        if unknown:
            raise ConfigError(
                f"{self.source}: {unknown[0]} = {self._values[unknown[0]]!r} is not understood and may change the "
                "maths; teach the family's config mapping what it means"
            )
