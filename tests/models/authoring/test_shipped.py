"""What is exported for use on anything: every entry point of each kind of model, whatever its prompts will be."""

from __future__ import annotations

import pytest
import torch

from models import registry
from models.authoring.hf_config import HFConfig
from models.authoring.session import shipped_sessions
from models.authoring.signatures import Signature, signatures


def shipped(name: str) -> dict[str, Signature]:
    """Signatures of a tiny preset with random weights, over 32 slots and prefills of 12."""
    model = registry.get(name)
    config = model.family.config_from(HFConfig(model.preset.values(tiny=True), name))
    built = model.family.build(config)
    made = signatures(
        built, prefill_lengths=[12], cache_length=32, prefill_logits=True, sessions=shipped_sessions(config, 12)
    )
    return {signature.name: signature for signature in made}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("smollm-135m", ["prefill_12", "decode"]),
        ("t5-small", ["encode", "decode"]),
        ("paligemma-2-3b-224", ["encode", "prefill_12", "prefill_12_pixel", "decode"]),
        ("qwen2.5-vl-3b", ["encode_16x16", "prefill_12", "prefill_12_pixel", "decode"]),
    ],
)
def test_every_entry_point_is_exported(name: str, expected: list[str]) -> None:
    """In the order of their calls, each with samples that it runs on."""
    made = shipped(name)
    assert list(made) == expected
    for signature in made.values():
        with torch.no_grad():
            outputs = signature.entry(signature.inputs)
        assert ("encoded" if signature.name.startswith("encode") else "logits") in outputs


def test_tensors_of_a_model_that_sees() -> None:
    """Pictures go in through ``encode`` and, with the row for each token, ``prefill_pixel``; decode knows no prefix."""
    made = shipped("paligemma-3b-224")
    taken = {
        name: {key: list(value.shape) for key, value in signature.inputs.items() if not key.startswith("kv_cache_")}
        for name, signature in made.items()
    }
    text = {"tokens": [1, 12], "input_pos": [12], "prefix_length": [1]}
    assert taken == {
        "encode": {"pixel_values": [1, 3, 42, 42]},
        "prefill_12": text,
        "prefill_12_pixel": {**text, "encoded": [1, 9, 96], "image_rows": [12]},
        "decode": {"tokens": [1, 1], "input_pos": [1]},
    }
