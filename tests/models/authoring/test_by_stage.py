"""Every parameter is a stage's, and has its values while that is loaded, and at no other time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from models import registry
from models.authoring.by_stage import ModelByStage
from models.authoring.hf_config import HFConfig
from models.authoring.weight_map import original_layout

STREAMED = [model for model in registry.models() if "t5" not in model.name and "moonshine" not in model.name]


def drawn(model: registry.Model, folder: Path) -> Path:
    """A tiny checkpoint of the model."""
    import json

    values = model.preset.values(tiny=True)
    config = model.family.config_from(HFConfig(values, model.name))
    layout = original_layout(model.family.build(config, device="meta"), model.family.weight_map(config))
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(meta.shape, generator=generator) for name, meta in layout.items()}
    (folder / "config.json").write_text(json.dumps(values))
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("model", STREAMED, ids=lambda model: model.name)
def test_stages_together_have_the_weights_of_the_model(model: registry.Model, tmp_path: Path) -> None:
    """Each parameter the same as in the model that is loaded as a whole, tied ones in both their places."""
    folder = drawn(model, tmp_path)
    whole = dict(model.family.load(folder).named_parameters(remove_duplicate=False))
    parts = ModelByStage(model.family, folder)
    found = {}
    for stage in parts.stages:
        with parts.loaded(stage):
            there = {
                name: value for name, value in parts.model.named_parameters(remove_duplicate=False) if not value.is_meta
            }
        assert sum({value.data_ptr(): value.numel() for value in there.values()}.values()) == parts.parameters_of(stage)
        found |= there
    assert all(value.is_meta for value in parts.model.parameters())
    assert found.keys() == whole.keys()
    for name, value in whole.items():
        assert torch.equal(value, found[name]), name
