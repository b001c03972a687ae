"""Pictures of any grid: what the processor makes of them, which calls they become, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from models import registry
from models.authoring.config import VisionLanguageConfig
from models.authoring.hf_config import HFConfig
from models.authoring.session import image_lengths, session_inputs, shipped_sessions
from parity.convert.export import _grids
from parity.errors import PromptError, UsageError
from parity.inputs import Inputs, _tokenize, read_prompts
from parity.ladder import fit
from parity.media.images import MARKER, ImageReader, with_images
from parity.media.pictures import PICTURES
from parity.weights import resolve

MODEL = registry.get("qwen2.5-vl-3b")


def config_of(model: registry.Model) -> VisionLanguageConfig:
    config = model.family.config_from(HFConfig(model.preset.values(tiny=True), model.name))
    assert isinstance(config, VisionLanguageConfig)
    return config


CONFIG = config_of(MODEL)


def read(name: str | Path, folder: Path) -> Inputs:
    """A set as ``tokenize`` gives it, without a process for each."""
    return _tokenize(read_prompts(str(name)), folder, CONFIG, 16, lambda *_: None)


@pytest.fixture(scope="module")
def folder() -> Path:
    return resolve(MODEL, "tiny").folder


@pytest.fixture
def prompts(tmp_path: Path) -> Callable[..., Path]:
    """A set of one prompt, ``tmp_path/set.jsonl``."""

    def write(text: str, images: Sequence[Any] = ()) -> Path:
        path = tmp_path / "set.jsonl"
        record = {"id": "p", "text": text, "images": list(images), "continuation": "and so on " * 9}
        path.write_text(json.dumps(record) + "\n")
        return path

    return write


@pytest.fixture
def processor(folder: Path, tmp_path: Path) -> Callable[..., Path]:
    """The checkpoint with other values in its processor's configuration."""

    def write(**changes: Any) -> Path:
        other = tmp_path / "checkpoint"
        shutil.copytree(folder, other)
        path = other / "preprocessor_config.json"
        values = json.loads(path.read_text()) | changes
        path.unlink()
        path.write_text(json.dumps(values))
        return other

    return write


def refused(set_of_prompts: Path, folder: Path, said: str) -> None:
    with pytest.raises(PromptError) as caught:
        read(set_of_prompts, folder)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_set_has_what_it_promises(folder: Path) -> None:
    """Pictures first, inside, last and twice; grids of one window, of full ones, cut off on both sides; text alone."""
    inputs = read("grids", folder)
    found = {
        prompt.id: [tuple(grid[1:]) for grid in prompt.media.get("image_grid_thw", ())] for prompt in inputs.prompts
    }
    assert found == {
        "first": [(8, 12)],
        "middle": [(6, 10)],
        "two": [(4, 16), (16, 4)],
        "again": [(6, 10), (6, 10)],
        "last": [(8, 12)],
        "single": [(4, 4)],
        "text_only": [],
    }
    assert CONFIG.vision.rows((4, 4)) == (2, 2)
    for prompt in inputs.prompts:
        assert prompt.prompt.count(CONFIG.image_token) == prompt.encoded_rows
        assert prompt.prompt.count(CONFIG.image_start[0]) == len(found[prompt.id])
        assert len(prompt.continuation) == 16


def test_tokens_and_patches_are_those_of_the_originals_processor(folder: Path) -> None:
    """One image token for each square of merged patches, between the tokens that begin and end a picture."""
    from transformers import AutoImageProcessor

    media = ImageReader(folder, CONFIG).read("p", ["sign", "flag"], Path())
    theirs = AutoImageProcessor.from_pretrained(folder, backend="pil")(
        images=[PICTURES["sign"](), PICTURES["flag"]()], return_tensors="np"
    )
    assert media["pixel_values"].shape == (4 * 16 + 6 * 10, CONFIG.vision.patch_values)
    assert np.array_equal(media["pixel_values"], theirs["pixel_values"])
    assert image_lengths(CONFIG, media) == [16, 15]

    def words(text: str, *, add_special_tokens: bool = True) -> Any:
        ids = [*([1] if add_special_tokens else []), *map(ord, text)]
        return type("Encoding", (), {"input_ids": ids})

    (start,), (end,), image = CONFIG.image_start, CONFIG.image_end, CONFIG.image_token
    ids = with_images("p", f"a{MARKER}b{MARKER}", words, CONFIG, media)
    assert ids == [1, 97, start, *[image] * 16, end, 98, start, *[image] * 15, end]


def test_one_call_for_each_picture_and_one_signature_for_each_grid(folder: Path) -> None:
    """With the patches of that picture; positions for every token of the session, on three axes."""
    inputs = read("grids", folder)
    prompt = next(prompt for prompt in inputs.prompts if prompt.id == "two")
    until = prompt.until(8)
    session = session_inputs(CONFIG, prompt.prompt, prompt.media, until)
    assert [(call.entry, call.rows) for call in session.calls] == [("encode_4x16", 16), ("encode_16x4", 16)]
    given = np.concatenate([call.tensors["pixel_values"] for call in session.calls])
    assert np.array_equal(given, prompt.media["pixel_values"])
    assert session.prefill == "prefill_pixel"
    assert not session.whole
    assert session.per_position["rope_pos"].shape == (3, until)
    assert session.per_position["image_rows"].max() == 31
    (export,) = fit(CONFIG, inputs, (), None, 8)
    grids = {call.entry for session in export.sessions for call in session.calls}
    assert grids == {f"encode_{grid}" for grid in ("8x12", "6x10", "4x16", "16x4", "4x4")}


@pytest.mark.parametrize(
    ("text", "images", "said"),
    [
        ("look", ["sign"], "has 1 images and 0 times <image> in its text"),
        ("<image>look", [], "has 0 images and 1 times <image> in its text"),
        ("<image><image>look", ["sign"], "has 1 images and 2 times <image>"),
        ("<image>look", ["thread.png"], "absolute aspect ratio must be smaller than 200"),
    ],
)
def test_prompts_that_are_refused(
    folder: Path, prompts: Any, tmp_path: Path, text: str, images: list[str], said: str
) -> None:
    """Before anything runs, in one line."""
    Image.new("RGB", (900, 3)).save(tmp_path / "thread.png")
    refused(prompts(text, images), folder, said)


def test_tokens_of_pictures_in_the_text_are_refused() -> None:
    """More image tokens than patches; and a video, which is out of scope."""

    def words(text: str, *, add_special_tokens: bool = True) -> Any:  # noqa: ARG001  (as a tokenizer is called)
        return type("Encoding", (), {"input_ids": list(map(ord, text))})

    with pytest.raises(PromptError, match="prompt p has an image token in its text; write <image>"):
        with_images("p", chr(CONFIG.image_token), words, CONFIG, {})
    assert CONFIG.video_token is not None
    with pytest.raises(PromptError, match="prompt p has a video token in its text; only still pictures are supported"):
        with_images("p", chr(CONFIG.video_token), words, CONFIG, {})


@pytest.mark.parametrize(
    ("asked", "entries", "rows"),
    [
        ((), ["encode_16x16"], 64),  # sixteen windows of two by two rows
        (("4x4",), ["encode_4x4"], 4),
        (("16x8", "6x10", "16x8"), ["encode_16x8", "encode_6x10", "encode_16x8"], 32 + 15 + 32),
    ],
)
def test_a_shipped_file_holds_the_grids_that_were_asked_for(asked: Any, entries: list[str], rows: int) -> None:
    """All of them in one prompt, the same twice where it is named twice; and a prompt without pictures."""
    plain, full = shipped_sessions(CONFIG, 32, grids=_grids(asked, CONFIG, "it"))
    assert [call.entry for call in full.calls] == entries
    assert sum(call.rows for call in full.calls) == rows
    assert (plain.prefill, full.prefill) == ("prefill", "prefill_pixel")
    assert plain.per_position["rope_pos"].shape[0] == 3
    assert full.per_position["image_rows"].max() == rows - 1


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("5x4", "--grid 5x4 is not filled by squares of 2 by 2 patches"),
        ("4x5", "--grid 4x5 is not filled"),
        ("0x4", "--grid 0x4 is no grid; write patches down and across, such as 32x32"),
        ("4", "--grid 4 is no grid"),
        ("4x4x4", "--grid 4x4x4 is no grid"),
        ("-4x4", "--grid -4x4 is no grid"),
    ],
)
def test_grids_that_are_refused(asked: str, said: str) -> None:
    """In one line that says what to write; and for models that have no use for them."""
    with pytest.raises(UsageError, match=said):
        _grids(["4x4", asked], CONFIG, "it")
    for name in ("llama-3.2-1b", "t5-small", "paligemma-3b-224"):
        model = registry.get(name)
        config = model.family.config_from(HFConfig(model.preset.values(tiny=True), name))
        assert _grids([], config, name) == []
        with pytest.raises(UsageError, match=f"--grid {asked} means nothing to {name}"):
            _grids([asked], config, name)


@pytest.mark.parametrize("grid", [(1, 5, 4), (1, 4, 5), (2, 4, 4)])
def test_grids_that_do_not_fit(folder: Path, monkeypatch: pytest.MonkeyPatch, grid: tuple[int, int, int]) -> None:
    """Sides that squares of merged patches do not fill, and more than one time."""
    reader = ImageReader(folder, CONFIG)
    made = {"pixel_values": np.zeros((20, 216), np.float32), "image_grid_thw": np.asarray([grid])}
    monkeypatch.setattr(type(reader.processor), "__call__", lambda *_, **__: made)
    said = f"makes a grid of {grid[0]} x {grid[1]} x {grid[2]} patches, the model takes squares of 2 by 2 of a still"
    with pytest.raises(PromptError, match=said):
        reader.read("p", ["sign"], Path())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"patch_size": 4}, "makes patches with patch_size 4, the model takes 6"),
        ({"merge_size": 1}, "makes patches with merge_size 1, the model takes 2"),
        ({"temporal_patch_size": 1}, "makes patches with temporal_patch_size 1, the model takes 2"),
        (
            {"image_processor_type": "SiglipImageProcessor"},
            "makes whole pictures, the model takes patches and their grid",
        ),
        # 160 x 48 is no multiple of 12 across.
        ({"do_resize": False}, "the image processor refuses the pictures of prompt p"),
    ],
    ids=str,
)
def test_processors_that_do_not_fit(prompts: Any, processor: Any, changes: dict[str, Any], said: str) -> None:
    """Sizes that are not the model's, another model's, and a picture that squares of merged patches do not fill."""
    refused(prompts("<image>look", ["sign"]), processor(**changes), said)
