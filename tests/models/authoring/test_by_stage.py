"""Parameters have values when they are wanted, one by one or while their stage is loaded, and at no other time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from models import registry
from models.authoring.by_stage import ModelByStage
from models.authoring.hf_config import HFConfig
from models.authoring.stored import StoredModel
from models.authoring.weight_map import original_layout
from models.errors import CheckpointError

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


@pytest.mark.parametrize("model", list(registry.models()), ids=lambda model: model.name)
def test_values_that_stay_in_the_checkpoint_are_those_of_the_model(
    model: registry.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the order in which they are asked for, again and again, and however often the file is opened again."""
    monkeypatch.setattr("models.authoring.stored._KEPT", 1 << 16)
    folder = drawn(model, tmp_path)
    whole = dict(model.family.load(folder).named_parameters())
    stored = StoredModel(model.family, folder)
    assert {name: value.shape for name, value in stored.hollow.named_parameters()} == {
        name: value.shape for name, value in whole.items()
    }
    with stored.values() as values:
        assert set(values) == set(whole)
        for name in [*whole, *reversed(whole)]:
            assert torch.equal(values[name], whole[name]), name


def test_a_value_that_is_not_finite_is_refused_when_it_is_asked_for(tmp_path: Path) -> None:
    model = registry.get("smollm-135m")
    folder = drawn(model, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][2, 3] = float("nan")
    save_file(tensors, folder / "model.safetensors")
    with StoredModel(model.family, folder).values() as values:
        assert values["blocks.0.mlp.up_proj.weight"].isfinite().all()
        with pytest.raises(CheckpointError, match=r"model\.layers\.1\.mlp\.up_proj\.weight holds NaN or infinity"):
            values["blocks.1.mlp.up_proj.weight"]


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
