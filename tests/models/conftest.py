"""What the tests here share: one thread, for the tensors are small, and the originals that models are compared with."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from models import registry
from models.authoring.decoder import DecoderOnlyModel
from models.authoring.hf_config import HFConfig
from models.authoring.weight_map import load_weights, original_layout

Logits = Callable[[Mapping[str, Any], Mapping[str, Tensor], Tensor], Tensor]
Pair = Callable[[Mapping[str, Any], int, int], tuple[Tensor, Tensor]]


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Torch's thread count as it was, afterwards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def openelm_lists() -> Callable[[Mapping[str, Any]], dict[str, list[Any]]]:
    """The per-layer lists that the published ``OpenELMConfig`` fills in from the ends of the ramps."""

    def make_divisible(value: float, divisor: int) -> int:
        nearest = max(divisor, int(value + divisor / 2) // divisor * divisor)
        return nearest + divisor if nearest < 0.9 * value else nearest

    def lists(values: Mapping[str, Any]) -> dict[str, list[Any]]:
        import numpy as np

        layers, width = values["num_transformer_layers"], values["model_dim"]
        attention, feed_forward = (
            # numpy's own round, not Python's: they differ where a step ends in a 5
            [float(round(v, 2)) for v in np.linspace(*values[key], num=layers, dtype=float)]
            for key in ("qkv_multipliers", "ffn_multipliers")
        )
        unit = values["head_dim"] * values["num_gqa_groups"]
        heads = [make_divisible(width * factor, unit) // values["head_dim"] for factor in attention]
        return {
            "num_query_heads": heads,
            "num_kv_heads": [count // values["num_gqa_groups"] for count in heads],
            "ffn_multipliers": feed_forward,
            "widths": [make_divisible(factor * width, values["ffn_dim_divisor"]) for factor in feed_forward],
        }

    return lists


@pytest.fixture(scope="session")
def original_logits(tmp_path_factory: pytest.TempPathFactory) -> Logits:
    """Logits ``[1, T, V]`` of the original in float32: its configuration, the published tensors, tokens ``[1, T]``."""

    def from_transformers(values: Mapping[str, Any], tensors: Mapping[str, Tensor], tokens: Tensor) -> Tensor:
        from transformers import AutoConfig, AutoModelForCausalLM

        # A copy: the library completes the objects inside the configuration it is given.
        config = AutoConfig.for_model(**deepcopy({**values, "torch_dtype": "float32"}))
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        unplaced = model.load_state_dict(tensors, strict=False)
        assert not unplaced.unexpected_keys
        assert unplaced.missing_keys == (["lm_head.weight"] if config.tie_word_embeddings else [])
        model.tie_weights()
        logits: Tensor = model(tokens).logits
        return logits

    def from_the_reference(values: Mapping[str, Any], tensors: Mapping[str, Tensor], tokens: Tensor) -> Tensor:
        from parity.inputs import TokenizedPrompt
        from parity.runners.openelm import OpenELMSession

        folder = tmp_path_factory.mktemp("openelm")
        (folder / "config.json").write_text(json.dumps(values))
        save_file(dict(tensors), folder / "model.safetensors")
        session = OpenELMSession(folder, torch.float32)
        prompt = TokenizedPrompt("prompt", tuple(tokens[0].tolist()), ())
        return torch.from_numpy(session.prefill(prompt, tokens.shape[1]).logits)[None]

    def run(values: Mapping[str, Any], tensors: Mapping[str, Tensor], tokens: Tensor) -> Tensor:
        computed = from_the_reference if values["model_type"] == "openelm" else from_transformers
        with torch.no_grad():
            return computed(values, tensors, tokens)

    return run


@pytest.fixture(scope="session")
def both_logits(original_logits: Logits) -> Pair:
    """A configuration's logits here and in the original, ``[1, T, V]``: drawn weights, T tokens, S cache slots."""

    def run(values: Mapping[str, Any], count: int, slots: int) -> tuple[Tensor, Tensor]:
        family = next(m.family for m in registry.models() if values["model_type"] in m.family.readers)
        config = family.config_from(HFConfig(values, "config.json"))
        model: DecoderOnlyModel = family.build(config, device="meta")
        table = list(family.weight_map(config))
        generator = torch.Generator().manual_seed(0)
        tensors = {}
        for name, meta in original_layout(model, table).items():
            # Gains and biases around 1, so that none is at a value that hides it.
            spread, centre = (meta.shape[-1] ** -0.5, 0.0) if meta.ndim == 2 else (0.3, 1.0)
            tensors[name] = centre + spread * torch.randn(meta.shape, generator=generator)
        load_weights(model, table, tensors)
        tokens = torch.randint(config.vocab_size, (1, count), generator=generator)
        with torch.no_grad():
            ours = model(tokens, torch.arange(count), model.empty_cache(slots))["logits"]
        return ours, original_logits(values, tensors, tokens)

    return run
