"""Qwen 2.5-VL against its original: the tower on any grid, positions on three axes, the spellings of its files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from models import registry
from models.authoring.config import VisionLanguageConfig, WindowedVisionConfig
from models.authoring.hf_config import HFConfig
from models.authoring.session import axial_positions
from models.authoring.vision_language import VisionLanguageModel
from models.authoring.weight_map import load_weights, original_layout
from models.authoring.windowed_vision import Frame, WindowedTower
from models.errors import ConfigError
from models.layers.vision import cells, windows
from models.qwen_vl import in_memory_weight_map
from parity.inputs import TokenizedPrompt
from parity.runners.driver import DrivenSession
from parity.runners.original import session_of
from parity.runners.reauthored import TorchProgram

MODEL = registry.get("qwen2.5-vl-3b")
FAMILY = MODEL.family
LAWS = settings(deadline=None, max_examples=60)
#: Two correct float32 models are each about 1e-6 from the exact result; a wrong formula is off by a thousandth.
CLOSE = 1e-5
IMAGE, START, END = 325, 322, 323
WORDS = [1, 9, 80, 7, 60, 100, 33, 12]
#: Patches down and across. One row; one window; four full windows; windows cut off below, at the right, on both sides.
GRIDS = [(2, 2), (4, 4), (8, 8), (6, 8), (8, 10), (6, 10), (2, 14), (14, 2)]


def tiny(**changes: Any) -> dict[str, Any]:
    """The tiny preset; a change of ``vision_config`` is merged into it."""
    values = MODEL.preset.values(tiny=True)
    vision = {**values["vision_config"], **changes.pop("vision_config", {})}
    return {**values, **changes, "vision_config": vision}


def config_of(values: Mapping[str, Any]) -> VisionLanguageConfig:
    config = FAMILY.config_from(HFConfig(values, "config.json"))
    assert isinstance(config, VisionLanguageConfig)
    return config


def drawn(values: Mapping[str, Any]) -> VisionLanguageModel:
    """A model in which every parameter is random, and no gain or bias at a value that hides it."""
    config = config_of(values)
    model = FAMILY.build(config, device="meta")
    assert isinstance(model, VisionLanguageModel)
    table = list(FAMILY.weight_map(config))
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, meta in original_layout(model, table).items():
        spread, centre = (meta[0].numel() ** -0.5, 0.0) if meta.ndim > 1 else (0.3, 1.0)
        tensors[name] = centre + spread * torch.randn(meta.shape, generator=generator)
    load_weights(model, table, tensors)
    return model


def original_of(model: VisionLanguageModel, values: Mapping[str, Any]) -> Any:
    from transformers import AutoConfig, AutoModelForImageTextToText

    config = AutoConfig.for_model(**deepcopy(dict(values)))
    original = AutoModelForImageTextToText.from_config(config, attn_implementation="eager").eval()
    unplaced = original.load_state_dict(original_layout(model, in_memory_weight_map(model.config, ())), strict=False)
    assert not unplaced.unexpected_keys
    assert unplaced.missing_keys == (["lm_head.weight"] if model.config.text.tied_head else [])
    original.tie_weights()
    return original


def pixels(config: VisionLanguageConfig, grid: tuple[int, int], seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((grid[0] * grid[1], config.vision.patch_values), generator=generator)


def encode(model: VisionLanguageModel, grid: tuple[int, int], values: Tensor) -> Tensor:
    """The rows of one picture ``[rows, D]``."""
    with torch.no_grad():
        return model.entry(f"encode_{grid[0]}x{grid[1]}", 0)({"pixel_values": values})["encoded"][0]


def distance(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    assert float(theirs.std()) > 0.05
    return float((ours - theirs).norm() / theirs.norm())


VISIONS = {
    "tiny": {},
    "windows of three": {"window_size": 36},
    "windows of one": {"window_size": 12},
    "windows that no frame fills": {"window_size": 1200},
    "no whole block": {"fullatt_block_indexes": []},
    "whole blocks alone": {"fullatt_block_indexes": [0, 1, 2]},
    "merged by three": {"spatial_merge_size": 3, "window_size": 36},
    "patches of their own": {"spatial_merge_size": 1, "window_size": 18},
    "grey, at one time": {"in_channels": 1, "in_chans": 1, "temporal_patch_size": 1},
    "one head": {"num_heads": 1},
}


@pytest.mark.parametrize("vision", list(VISIONS))
def test_rows_are_the_originals(vision: str) -> None:
    """Every grid, the frame as it is cut by windows of any size."""
    values = tiny(vision_config=VISIONS[vision])
    model = drawn(values)
    tower = original_of(model, values).model.visual
    merge = model.config.vision.merge
    for down, across in GRIDS:
        grid = (down // 2 * merge, across // 2 * merge)
        picture = pixels(model.config, grid)
        with torch.no_grad():
            theirs = tower(picture, torch.tensor([[1, *grid]])).pooler_output
        assert distance(encode(model, grid, picture), theirs) < CLOSE, grid


def test_windows_matter() -> None:
    """The grids above do not hide them: only in a frame of one window is it the same to see everything."""
    model = drawn(tiny())
    everywhere = replace(model.config.vision, whole_blocks=(0, 1, 2))
    for grid in GRIDS:
        picture = pixels(model.config, grid)
        rows = encode(model, grid, picture)
        whole = WindowedTower(everywhere)
        whole.load_state_dict(model.vision.state_dict())
        with torch.no_grad():
            found = distance(whole_rows(whole, grid, picture), rows)
        assert found < CLOSE if max(grid) <= 4 else found > 0.01, grid


def whole_rows(tower: WindowedTower, grid: tuple[int, int], picture: Tensor) -> Tensor:
    state = {"pixel_values": picture}
    for stage in tower.stages(*grid):
        stage(state)
    return state["encoded"][0]


def test_patches_permuted_with_their_positions_permute_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention knows no order: where a patch is, it knows only from the angles it is rotated by."""
    model = drawn(tiny(vision_config={"window_size": 48}))
    grid = (8, 6)
    picture = pixels(model.config, grid)
    rows, frame = encode(model, grid, picture), Frame.of(model.config.vision, grid)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(2))
    slots = (4 * order[:, None] + torch.arange(4)).flatten()
    moved = replace(frame, patches=frame.patches[slots])
    monkeypatch.setattr(Frame, "of", lambda *_: moved)
    assert distance(encode(model, grid, picture), rows[order]) > 0.01
    moved = replace(moved, cos=frame.cos[:, slots], sin=frame.sin[:, slots])
    assert distance(encode(model, grid, picture), rows[order]) < CLOSE


@LAWS
@given(rows=st.integers(1, 12), columns=st.integers(1, 12), side=st.integers(1, 14))
def test_every_cell_is_in_one_window(rows: int, columns: int, side: int) -> None:
    """Once, with its neighbours, windows row by row; all windows of a size, the missing marked."""
    cut = windows(rows, columns, side)
    assert sorted(cut[cut >= 0].tolist()) == list(range(rows * columns))
    assert cut.shape == (-(-rows // side) * -(-columns // side), min(side, rows) * min(side, columns))
    for number, window in enumerate(cut.tolist()):
        across = -(-columns // side)
        inside = [divmod(cell, columns) for cell in window if cell >= 0]
        assert {(row // side, column // side) for row, column in inside} == {divmod(number, across)}
        assert inside == sorted(inside)


@pytest.mark.parametrize("side", [1, 2, 3])
def test_cells_are_numbered_square_by_square(side: int) -> None:
    """As the original's processor orders patches."""
    from transformers.vision_utils import get_vision_position_ids

    grid = (4 * side, 3 * side)
    assert torch.equal(cells(*grid, side), get_vision_position_ids(torch.tensor([[1, *grid]]), side))


def picture_tokens(grid: tuple[int, int]) -> list[int]:
    return [START, *[IMAGE] * (grid[0] * grid[1] // 4), END]


LAYOUTS: dict[str, list[list[int] | tuple[int, int]]] = {
    "first": [(6, 8), WORDS],
    "inside": [WORDS[:3], (8, 6), WORDS[3:]],
    "last": [WORDS, (2, 14)],
    "two of different grids": [WORDS[:2], (4, 16), WORDS[2:5], (12, 4), WORDS[5:]],
    "two of one grid": [(6, 6), (6, 6), WORDS],
    "one row": [(2, 2), WORDS],
    "text only": [WORDS],
}


def prompt_of(config: VisionLanguageConfig, parts: Sequence[list[int] | tuple[int, int]]) -> TokenizedPrompt:
    grids = [part for part in parts if isinstance(part, tuple)]
    tokens = [token for part in parts for token in (picture_tokens(part) if isinstance(part, tuple) else part)]
    media = {}
    if grids:
        values = [pixels(config, grid, seed) for seed, grid in enumerate(grids)]
        media = {
            "pixel_values": torch.cat(values).numpy(),
            "image_grid_thw": np.asarray([(1, *grid) for grid in grids], np.int64),
        }
    return TokenizedPrompt("prompt", tuple(tokens), (), media)


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_positions_are_the_originals(layout: str) -> None:
    """For the prompt, and for what follows it by what the original remembers."""
    model = drawn(tiny())
    prompt = prompt_of(model.config, LAYOUTS[layout])
    tokens = torch.tensor([prompt.prompt])
    grids = prompt.media.get("image_grid_thw", np.empty((0, 3), np.int64))
    until = len(prompt.prompt) + 5
    frames = [model.config.vision.rows((int(down), int(across))) for _, down, across in grids]
    ours = axial_positions(prompt.prompt, IMAGE, frames, until)
    if len(grids):
        original = original_of(model, tiny())
        types = (tokens == IMAGE).int()
        theirs, delta = original.model.get_rope_index(tokens, types, torch.from_numpy(grids))
        assert ours[:, : tokens.shape[1]].tolist() == theirs[:, 0].tolist()
        assert ours[:, tokens.shape[1] :].tolist() == [[i + int(delta) for i in range(tokens.shape[1], until)]] * 3
    else:
        assert ours.tolist() == [list(range(until))] * 3


def run(session: Any, prompt: TokenizedPrompt, further: Sequence[int]) -> dict[str, Tensor]:
    with torch.no_grad():
        logits, encoded = session.prefill(prompt, len(prompt.prompt) + len(further))
        logits = np.concatenate([logits, *(session.decode(token)[None] for token in further)])
    made = {"logits": torch.from_numpy(logits)}
    return made if encoded is None else {**made, "encoded": torch.from_numpy(encoded)}


VARIANTS = {
    "tiny": tiny(),
    "untied": tiny(tie_word_embeddings=False),
    "sections": tiny(rope_scaling={"type": "mrope", "mrope_section": [5, 1, 2]}),
    "theta": tiny(rope_theta=100.0),
    "eps": tiny(rms_norm_eps=0.1),
    "every head its own": tiny(num_key_value_heads=10),
}


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_numbers_are_the_originals(variant: str) -> None:
    """Rows and logits of every layout in one session after another, which must not remember the one before."""
    model = drawn(VARIANTS[variant])
    ours = DrivenSession(model.config, [TorchProgram(model, 96)])
    theirs = session_of(original_of(model, VARIANTS[variant]))
    for layout in LAYOUTS.values():
        prompt = prompt_of(model.config, layout)
        made, expected = run(ours, prompt, [5, 6, 70, 8]), run(theirs, prompt, [5, 6, 70, 8])
        assert made.keys() == expected.keys()
        found = {name: distance(made[name], expected[name]) for name in made}
        assert max(found.values()) < CLOSE, (layout, found)


def test_text_alone_is_the_text_model() -> None:
    """Without pictures all axes are equal, and so is every number to that of the plain rotation."""
    model = drawn(tiny())
    plain = replace(model.config.text, rope=replace(model.config.text.rope, sections=None))
    text = registry.family("qwen2").build(plain)
    text.load_state_dict(model.text.state_dict())
    with torch.no_grad():
        alone = text(torch.tensor([WORDS]), torch.arange(len(WORDS)), text.empty_cache(16))["logits"][0]
    session = DrivenSession(model.config, [TorchProgram(model, 16)])
    assert torch.equal(run(session, prompt_of(model.config, [WORDS]), [])["logits"], alone)


def test_every_spelling_loads(tmp_path: Path) -> None:
    """Published, as ``save_pretrained`` writes it with its nested configuration, and as the modules are called."""
    values = tiny()
    model = drawn(values)
    original = original_of(model, values)
    original.save_pretrained(tmp_path / "saved")
    original.save_pretrained(tmp_path / "modules", save_original_format=False)
    (tmp_path / "published").mkdir()
    save_file(
        original_layout(model, FAMILY.weight_map(model.config)),
        tmp_path / "published" / "model.safetensors",
        {"format": "pt"},
    )
    (tmp_path / "published" / "config.json").write_text(json.dumps(values))
    assert "text_config" in json.loads((tmp_path / "saved" / "config.json").read_text())
    for spelling, mark in (("published", ""), ("saved", ""), ("modules", "model.")):
        folder = tmp_path / spelling
        assert f"{mark}visual.merger.ln_q.weight" in load_file(folder / "model.safetensors")
        loaded = FAMILY.load(folder)
        assert loaded.config == model.config
        for parameter, expected in model.named_parameters():
            assert torch.equal(loaded.get_parameter(parameter), expected), parameter


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"image_token_id": 336}, "image_token_id 336 is beyond the 336 embeddings"),
        ({"video_token_id": 151656}, "video_token_id 151656 is beyond the 336 embeddings"),
        ({"use_sliding_window": True}, "use_sliding_window = True changes the maths"),
        ({"head_dim": 8}, "head_dim = 8 changes the maths"),
        ({"num_attention_heads": 12}, "hidden_size is not a multiple of num_attention_heads"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 4]}}, "does not add up to 8 pairs"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [4, 4]}}, "mrope_section has 2 entries for 3 axes"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_type 'yarn' is not supported"),
        ({"novel": 1}, "novel = 1 is not understood"),
        ({"vision_config": {"novel": 1}}, "vision_config: novel = 1 is not understood"),
        ({"vision_config": {"in_chans": 1}}, "in_chans = 1 changes the maths; only 3"),
        ({"vision_config": {"out_hidden_size": 96}}, "out_hidden_size 96 is not the text's 160"),
        ({"vision_config": {"num_heads": 5}}, "hidden_size is not a multiple of num_heads"),
        ({"vision_config": {"num_heads": 16}}, "heads of 6 have no even half"),
        ({"vision_config": {"window_size": 11}}, "window_size is less than a square"),
        ({"vision_config": {"fullatt_block_indexes": [-1]}}, "fullatt_block_indexes is -1"),
        ({"vision_config": {"model_type": "qwen2_vl"}}, "not qwen2_5_vl_vision or qwen2_5_vl"),
        ({"vision_config": {"rope_parameters": {"rope_type": "default"}}}, "rope_type 'default' is not supported"),
    ],
    ids=str,
)
def test_configurations_that_are_refused(changes: dict[str, Any], said: str) -> None:
    """By name, and before any weight is read."""
    with pytest.raises(ConfigError) as caught:
        config_of(tiny(**changes))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_tiny_keeps_every_quirk() -> None:
    """Shrunk are the sizes alone; a patch and the tower's feed-forward do not fall into blocks of 32, as published."""
    full, small = config_of(MODEL.preset.values()), config_of(tiny())
    for config in (full, small):
        vision = config.vision
        assert isinstance(vision, WindowedVisionConfig)
        assert vision.patch_values % 32
        assert vision.blocks[0].mlp.hidden % 32
        assert 0 < len(vision.whole_blocks) < len(vision.blocks)
        assert config.text.rope.sections is not None
        assert len(set(config.text.rope.sections)) == 2
        assert config.text.tied_head
