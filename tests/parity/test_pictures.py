"""Prompts with pictures: what is drawn, what is read, where it stands among the tokens, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from models import registry
from models.authoring.config import ModelConfig, VisionLanguageConfig
from models.authoring.hf_config import HFConfig
from models.authoring.session import Tensors, session_inputs
from parity.errors import PromptError, RungError
from parity.golden import identity
from parity.inputs import Inputs, TokenizedPrompt, _tokenize, read_prompts
from parity.ladder import fit
from parity.media.images import MARKER, ImageReader, with_images
from parity.media.pictures import COLOURED, PICTURES, open_picture
from parity.runners.driver import Chunk, plan_chunks
from parity.weights import resolve

MODEL = registry.get("paligemma-3b-224")
LAWS = settings(deadline=None, max_examples=100)


def config_of(model: registry.Model) -> VisionLanguageConfig:
    config = model.family.config_from(HFConfig(model.preset.values(tiny=True), model.name))
    assert isinstance(config, VisionLanguageConfig)
    return config


CONFIG = config_of(MODEL)
ROWS = [CONFIG.image_token] * CONFIG.vision.rows


class Words:
    """A tokenizer of one id a character, which begins a text with 1."""

    def __call__(self, text: str, *, add_special_tokens: bool = True) -> Any:
        ids = [*([1] if add_special_tokens else []), *map(ord, text)]
        return type("Encoding", (), {"input_ids": ids})


def read(name: str | Path, folder: Path, config: ModelConfig = CONFIG) -> Inputs:
    """A set as ``tokenize`` gives it, without a process for each."""
    return _tokenize(read_prompts(str(name)), folder, config, 16, lambda *_: None)


def media(count: int) -> Tensors:
    vision = CONFIG.vision
    shape = (count, vision.channels, vision.image_size, vision.image_size)
    return {"pixel_values": np.random.default_rng(0).normal(size=shape).astype(np.float32)} if count else {}


@pytest.fixture(scope="module")
def folder() -> Path:
    return resolve(MODEL, "tiny").folder


@pytest.fixture
def prompts(tmp_path: Path) -> Callable[..., Path]:
    """A set of one prompt, ``tmp_path/set.jsonl``."""

    def write(text: str, images: Sequence[Any] = (), **more: Any) -> Path:
        path = tmp_path / "set.jsonl"
        record = {"id": "p", "text": text, "images": list(images), "continuation": "and so on " * 9, **more}
        path.write_text(json.dumps(record) + "\n")
        return path

    return write


@pytest.mark.parametrize("name", list(PICTURES))
def test_pictures_are_always_the_same(name: str) -> None:
    """In colour, of many colours or at least two, and the same whenever they are drawn."""
    first, second = PICTURES[name](), open_picture(name, Path())
    assert first.mode == "RGB"
    assert first.tobytes() == second.tobytes()
    assert len(first.getcolors(1 << 20)) > 1


def test_pictures_differ_in_size_and_shape() -> None:
    """Upright, wide and square: a processor that mixes up height and width would show."""
    sizes = [PICTURES[name]().size for name in PICTURES]
    assert len(set(sizes)) == len(sizes)
    assert {np.sign(width - height) for width, height in sizes} == {-1, 0, 1}


@pytest.mark.parametrize("mode", COLOURED)
def test_files_of_every_coloured_mode_are_read(mode: str, tmp_path: Path) -> None:
    """Relative to the set's folder, in RGB whatever they were."""
    suffix = {"CMYK": "tiff", "YCbCr": "tiff", "PA": "tiff"}.get(mode, "png")
    path = tmp_path / f"picture.{suffix}"
    saved = PICTURES["shapes"]().convert("P").convert(mode) if mode == "PA" else PICTURES["shapes"]().convert(mode)
    (saved.convert("LA") if mode == "PA" else saved).save(path)
    read = open_picture(path.name, tmp_path)
    assert (read.mode, read.size) == ("RGB", saved.size)


def test_files_that_are_no_pictures(tmp_path: Path) -> None:
    """Missing, a folder, not a picture, cut short, and numbers without colours: each in one line with its name."""
    whole = tmp_path / "whole.png"
    PICTURES["noise"]().save(whole)
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:2000])
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8)).save(tmp_path / "deep.png")
    Image.fromarray(np.zeros((8, 8), np.float32)).save(tmp_path / "float.tiff")
    said = {
        "gone.png": "is no file; there are shapes, ",
        "cut.png": "cannot be read as a picture",
        "text.png": "cannot be read as a picture",
        "empty.jpg": "cannot be read as a picture",
        "folder.png": "cannot be read as a picture",
        "deep.png": "is of mode I;16, which has no colours",
        "float.tiff": "is of mode F, which has no colours",
    }
    for name, words in said.items():
        with pytest.raises(PromptError) as caught:
            open_picture(name, tmp_path)
        assert words in str(caught.value)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)


@LAWS
@given(pieces=st.lists(st.text("abc", max_size=4), min_size=1, max_size=5))
def test_markers_become_rows_and_words_stay(pieces: list[str]) -> None:
    """The words in order, image tokens for each marker, and once, before the first words, what begins a text."""
    config = replace(CONFIG, image_start=(7, 8), image_end=(9,))
    ids = with_images("p", MARKER.join(pieces), Words(), config, media(len(pieces) - 1))
    picture = [7, 8, *ROWS, 9]
    expected: list[int] = []
    begun = False
    for number, piece in enumerate(pieces):
        expected += picture if number else []
        if not begun and (piece or number == len(pieces) - 1):
            expected, begun = [*expected, 1], True
        expected += map(ord, piece)
    assert ids == expected


def test_order_is_that_of_the_originals_processor(folder: Path) -> None:
    """Pictures, what begins a text, words, line break; which the processor adds, and a prompt of ours ends with."""
    from transformers import AutoImageProcessor, AutoTokenizer, PaliGemmaProcessor

    tokenizer = AutoTokenizer.from_pretrained(folder)
    picture = PICTURES["sign"]()
    text = f"{MARKER}What does the sign say?"
    ours = with_images("p", f"{text}\n", tokenizer, CONFIG, media(1))
    reader = ImageReader(folder, CONFIG)
    processor = PaliGemmaProcessor(AutoImageProcessor.from_pretrained(folder, backend="pil"), tokenizer)
    theirs = processor(images=picture, text=text, return_tensors="np")
    ids = [CONFIG.image_token if token == processor.image_token_id else token for token in theirs["input_ids"][0]]
    assert ours == ids
    assert not theirs["token_type_ids"].any()
    (pixels,) = reader.read("p", ["sign"], Path()).values()
    assert np.array_equal(pixels, theirs["pixel_values"])


@pytest.mark.parametrize(
    ("text", "images", "said"),
    [
        ("look\n", ["sign"], "has 1 images and 0 times <image> in its text"),
        ("<image>look\n", [], "has 0 images and 1 times <image> in its text"),
        ("<image><image>look\n", ["sign"], "has 1 images and 2 times <image>"),
        ("<image>look\n", ["nothing"], "no picture is called 'nothing'"),
        ("<image>look\n", [3], "images is a list of names"),
    ],
)
def test_prompts_that_are_refused(folder: Path, prompts: Any, text: str, images: list[Any], said: str) -> None:
    """Before anything runs, in one line."""
    with pytest.raises(PromptError) as caught:
        read(prompts(text, images), folder)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_prompt_with_images_is_not_cut(prompts: Any) -> None:
    """Half a picture is none."""
    with pytest.raises(PromptError, match="a prompt with images is not cut"):
        read_prompts(str(prompts("<image>look\n", ["sign"], prompt_tokens=5)))


def test_an_image_token_in_the_text_is_refused() -> None:
    """Only a marker makes a picture's places."""
    with pytest.raises(PromptError, match="has an image token in its text"):
        with_images("p", chr(CONFIG.image_token), Words(), CONFIG, {})


def test_a_model_that_cannot_see_refuses_pictures(prompts: Any) -> None:
    """A text model would take the marker for words."""
    model = registry.get("gemma-2b")
    config = model.family.config_from(HFConfig(model.preset.values(tiny=True), model.name))
    with pytest.raises(PromptError, match="prompt p has images, which the model cannot see"):
        read(prompts("<image>look\n", ["sign"]), resolve(model, "tiny").folder, config)


@pytest.mark.parametrize(
    ("processor", "said"),
    [
        ({"size": {"height": 56, "width": 56}}, r"makes pictures of \[3, 56, 56\], the model takes \[3, 42, 42\]"),
        ({"image_processor_type": "NoSuchProcessor"}, "cannot be loaded"),
        (None, "copy the original's preprocessor_config.json into it"),
    ],
)
def test_processors_that_do_not_fit(folder: Path, prompts: Any, tmp_path: Path, processor: Any, said: str) -> None:
    """One of another model, one that nobody knows, none at all."""
    other = tmp_path / "checkpoint"
    shutil.copytree(folder, other)
    path = other / "preprocessor_config.json"
    values = json.loads(path.read_text())
    path.unlink()
    if processor:
        path.write_text(json.dumps({**values, **processor}))
    with pytest.raises(PromptError, match=said) as caught:
        read(prompts("<image>look\n", ["sign"]), other)
    assert "\n" not in str(caught.value)


def test_pictures_are_part_of_what_a_recording_was_made_from(folder: Path, prompts: Any, tmp_path: Path) -> None:
    """Another file under the same name makes it stale; prompts without pictures are as they were."""
    weights = resolve(MODEL, "tiny")
    path = prompts("<image>look\n", ["own.png"])
    found = []
    for name in ("sign", "rings", "sign"):
        PICTURES[name]().save(tmp_path / "own.png")
        found.append(identity(weights, read(path, folder)))
    assert found[0] == found[2]
    assert {key for key in found[0] if found[0][key] != found[1][key]} == {"media"}
    text = identity(weights, read(prompts("look\n"), folder))
    assert "media" not in text


def test_sessions_with_and_without_pictures() -> None:
    """A call for each picture, its rows at its tokens and nowhere beyond the prompt; text alone is plain prefill."""
    tokens = [1, *ROWS, 5, *ROWS, 6]
    session = session_inputs(CONFIG, tokens, media(2), 30)
    assert [(call.entry, call.rows, call.tensors["pixel_values"].shape[0]) for call in session.calls] == [
        ("encode", 9, 1),
        ("encode", 9, 1),
    ]
    rows = session.per_position["image_rows"]
    assert rows.tolist() == [-1, *range(9), -1, *range(9, 18), -1, *[-1] * 9]
    assert (session.prefill, session.whole) == ("prefill_pixel", True)
    assert session.constant["prefix_length"].tolist() == [21]
    plain = session_inputs(CONFIG, [1, 5, 6], {}, 30)
    assert (plain.calls, plain.prefill, dict(plain.per_position)) == ((), "prefill", {})


@LAWS
@given(tokens=st.integers(1, 60), lengths=st.lists(st.integers(1, 64), max_size=4), cache=st.integers(1, 64))
def test_a_whole_prompt_is_one_call_or_an_error(tokens: int, lengths: list[int], cache: int) -> None:
    """The shortest signature that holds it, padding within the cache."""
    holding = [length for length in (1, *lengths) if tokens <= length <= cache]
    if holding:
        assert plan_chunks(tokens, lengths, cache, whole=True) == [Chunk(0, tokens, min(holding))]
        return
    with pytest.raises(RungError, match="goes in one call"):
        plan_chunks(tokens, lengths, cache, whole=True)


def _inputs(*lengths: int) -> Inputs:
    made = (TokenizedPrompt(f"p{i}", (5,) * length, (6,) * 16) for i, length in enumerate(lengths))
    return Inputs("set", "set", "", "", tuple(made))


def test_prefills_hold_every_prompt() -> None:
    """Rounded up where nothing is asked for; what is asked for and too short is an error before anything runs."""
    assert [export.prefill_lengths for export in fit(CONFIG, _inputs(3, 33), (), None, 8)] == [(48,)]
    assert [export.prefill_lengths for export in fit(CONFIG, _inputs(3, 48), (), None, 8)] == [(48,)]
    assert [export.prefill_lengths for export in fit(CONFIG, _inputs(3, 33), (64, 8), None, 8)] == [(64, 8)]
    with pytest.raises(PromptError, match=r"prompt p1 has 33 tokens .* the longest --prefill takes 32"):
        fit(CONFIG, _inputs(3, 33), (8, 32), None, 8)
    text = registry.get("gemma-2b")
    config = text.family.config_from(HFConfig(text.preset.values(tiny=True), text.name))
    assert [export.prefill_lengths for export in fit(config, _inputs(3, 33), (), None, 8)] == [(16,)]


def test_set_has_what_it_promises(folder: Path) -> None:
    """Six pictures or more, one prompt without any, all of them longer than the tiny window of five."""
    inputs = read("pictures", folder)
    assert len(inputs.prompts) >= 7
    assert [prompt.id for prompt in inputs.prompts if not prompt.encoded_rows] == ["text_only"]
    assert all(len(prompt.prompt) > 5 and len(prompt.continuation) == 16 for prompt in inputs.prompts)
