"""One stage of a model at a time: the same numbers, a part of the memory, and nothing begun that cannot be ended."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from models import registry
from models.authoring.hf_config import HFConfig
from models.authoring.weight_map import original_layout
from models.errors import ModelError
from parity.compare.limits import EXACT
from parity.errors import ParityError, RungError
from parity.inputs import Inputs, TokenizedPrompt, read_prompts, tokenize
from parity.runners import base, conveyor
from parity.runners.base import Recorded, record
from parity.runners.conveyor import Streamable
from parity.runners.original import Original
from parity.runners.precision import Precision
from parity.runners.reauthored import Reauthored
from parity.trace import PromptTrace, Trace
from parity.weights import Weights, resolve

#: One for each thing that a model can have: tied and untied heads, fused weights, biases, windows, soft-caps, parallel
#: blocks, scaled embeddings, frequencies that depend on the length, layers that differ, the published code's absence.
DECODERS = ("smollm-135m", "tinyllama-1.1b", "qwen2.5-0.5b", "gemma-2b", "gemma-2-2b", "phi-2", "phi-3.5-mini")
OPENELM = "openelm-270m"
SEEING = ("paligemma-3b-224", "paligemma-2-3b-224", "qwen2.5-vl-3b")
#: On either side of the boundary of 32 that tiny models have.
CACHES = (32, 64)
GENERATED = 3
RUNGS = ("original64", "original", "reauthored64", "reauthored")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Torch's thread count as it was, afterwards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def silent(_done: int, _total: int) -> None:
    """Progress that nobody watches."""


def weights_of(name: str) -> Weights:
    return resolve(registry.get(name), "tiny")


def runner_of(rung: str, name: str, folder: Path) -> Streamable:
    if rung.startswith("reauthored"):
        precision: Precision = "float64" if rung == EXACT else "float32"
        family = registry.get(name).family.name
        return Reauthored(family, folder, CACHES, end_tokens=frozenset((5,)), name=rung, precision=precision)
    return Original(folder, "float64" if rung == "original64" else "float32")


def text() -> Inputs:
    """Prompts of several lengths, one in pieces, one with a second turn, one beside another row."""
    drawn = np.random.default_rng(0).integers(3, 250, 64).tolist()
    prompts = (
        TokenizedPrompt("short", tuple(drawn[:3]), tuple(drawn[40:43])),
        TokenizedPrompt("beyond", tuple(drawn[:36]), tuple(drawn[40:42])),
        TokenizedPrompt("turn", tuple(drawn[5:18]), (7,), turn=tuple(drawn[20:26]), reply=(9, 8), generates=False),
        TokenizedPrompt("pieces", tuple(drawn[:13]), (1,), through=(4,), generates=False),
        TokenizedPrompt("row", (4, 5, 6), (7,), beside=(9, 10, 11, 12), row=1, generates=False),
    )
    return Inputs("made", "", "", "", prompts)


def both(runner: Streamable, inputs: Inputs, guide: base.Guide | None) -> tuple[Trace, Trace]:
    whole, note = base.answer(runner, inputs, GENERATED, guide, silent)
    streamed, same_note = conveyor.answer(runner, inputs, GENERATED, guide, silent)
    assert note == same_note
    return whole, streamed


def assert_same(whole: Trace, streamed: Trace) -> None:
    """Bit for bit."""
    assert list(whole.prompts) == list(streamed.prompts)
    for name, expected in whole.prompts.items():
        found = streamed.prompts[name]
        for field in fields(PromptTrace):
            if field.name != "steps":
                assert_equal(getattr(expected, field.name), getattr(found, field.name), f"{name}/{field.name}")
        for part in ("ids", "margins", "ends"):
            assert_equal(getattr(expected.steps, part), getattr(found.steps, part), f"{name}/{part}")


def assert_equal(expected: np.ndarray | None, found: np.ndarray | None, what: str) -> None:
    assert (expected is None) == (found is None), what
    if expected is not None and found is not None:
        assert expected.dtype == found.dtype, what
        assert np.array_equal(expected, found), what


@pytest.mark.parametrize("name", [*DECODERS, OPENELM])
def test_a_streamed_trace_is_the_whole_ones(name: str) -> None:
    """Of the oracle, which generates freely, and of the rungs that it leads; also past what they take for an end."""
    folder = weights_of(name).folder
    guide = None
    for rung in RUNGS:
        whole, streamed = both(runner_of(rung, name, folder), text(), guide)
        assert_same(whole, streamed)
        guide = guide or whole.said
    free, streamed = both(runner_of("reauthored", name, folder), text(), None)
    assert_same(free, streamed)


@pytest.mark.parametrize("name", SEEING)
def test_pictures_go_through_their_tower_by_stages(name: str) -> None:
    """Prompts with one picture, several, and none, together."""
    model, folder = registry.get(name), weights_of(name).folder
    config = model.family.config_from(HFConfig.load(folder))
    found = tokenize(read_prompts(model.prompts(tiny=True)), folder, config)
    seen = [prompt for prompt in found.prompts if prompt.media][:2]
    inputs = replace(found, prompts=(*seen, *[prompt for prompt in found.prompts if not prompt.media][:1]))
    assert len(seen) == 2
    needed = max(prompt.until(GENERATED) for prompt in inputs.prompts)
    guide = None
    for rung in RUNGS:
        runner = runner_of(rung, name, folder)
        if isinstance(runner, Reauthored):
            runner = replace(runner, cache_lengths=(needed,))
        whole, streamed = both(runner, inputs, guide)
        assert_same(whole, streamed)
        guide = guide or whole.said


# -- memory


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A made-up checkpoint of many layers, 220 MB of bfloat16, in which no stage is more than a fiftieth of it."""
    values = {
        **registry.get("tinyllama-1.1b").preset.values(tiny=True),
        "hidden_size": 512,
        "intermediate_size": 1536,
        "num_hidden_layers": 32,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "vocab_size": 256,
    }
    family = registry.family("llama")
    config = family.config_from(HFConfig(values, "made up"))
    layout = original_layout(family.build(config, device="meta"), family.weight_map(config))
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: (torch.randn(meta.shape, generator=generator) * 0.04).to(torch.bfloat16) for name, meta in layout.items()
    }
    folder = tmp_path_factory.mktemp("deep")
    (folder / "config.json").write_text(json.dumps(values))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(("rung", "bytes_each"), [("original64", 8), ("original", 4), ("reauthored", 4)])
def test_weights_are_never_all_in_memory(deep: Path, tmp_path: Path, rung: str, bytes_each: int) -> None:
    """What streaming saves is nine tenths of the weights at the least, in the same numbers."""
    inputs = Inputs("made", "", "", "", (TokenizedPrompt("p", (1, 2, 3, 4), (5,), generates=False),))
    runner = runner_of(rung, "tinyllama-1.1b", deep)

    def recorded(answering: base.Answering) -> Recorded:
        return record(runner, inputs, tmp_path, generate=0, answering=answering)

    whole, streamed = recorded(base.answer), recorded(conveyor.answer)
    assert_same(whole.trace, streamed.trace)
    weights = bytes_each * (deep / "model.safetensors").stat().st_size / 2
    assert whole.peak_rss_mb - streamed.peak_rss_mb > 0.9 * weights / 2**20


# -- what is wrong with a checkpoint is said before anything is run


def lacking(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in tensors.items() if name != sorted(tensors)[1]}


def with_another(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**tensors, "another": torch.zeros(3)}


def misshapen(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    name = sorted(tensors)[1]
    return {**tensors, name: torch.cat([tensors[name]] * 2)}


def copied(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    return to


@pytest.mark.parametrize(
    ("wrong", "rung"),
    # Shapes are held against the configuration when a run is weighed, whatever its rungs.
    [*((wrong, rung) for wrong in (lacking, with_another) for rung in RUNGS), (misshapen, "reauthored")],
)
@pytest.mark.parametrize("name", ["qwen2.5-0.5b", OPENELM])
def test_tensors_are_checked_before_a_stage_is_loaded(name: str, rung: str, wrong: Any, tmp_path: Path) -> None:
    """The name of the one that is missing, left over or of another shape."""
    folder = copied(weights_of(name).folder, tmp_path / "made")
    tensors = load_file(folder / "model.safetensors")
    save_file(wrong(tensors), folder / "model.safetensors", metadata={"format": "pt"})
    named = "another" if wrong is with_another else sorted(tensors)[1]
    with pytest.raises((RungError, ModelError), match=named), runner_of(rung, name, folder).stream():
        pytest.fail("a stage could have been loaded")


@pytest.mark.parametrize("rung", RUNGS)
@pytest.mark.parametrize("name", ["qwen2.5-0.5b", OPENELM])
def test_a_truncated_file_is_refused(name: str, rung: str, tmp_path: Path) -> None:
    """Its header says how long it should be."""
    folder = copied(weights_of(name).folder, tmp_path / "made")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises((RungError, ModelError), match=r"model\.safetensors is truncated"):
        conveyor.answer(runner_of(rung, name, folder), text(), 0, None, silent)


def test_values_are_checked_as_they_are_loaded(tmp_path: Path) -> None:
    """NaN in the last layer is found when that is loaded, and named."""
    folder = copied(weights_of("qwen2.5-0.5b").folder, tmp_path / "made")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][3] = torch.nan
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    runner = runner_of("reauthored", "qwen2.5-0.5b", folder)
    with pytest.raises(ModelError, match=r"model\.norm\.weight holds NaN"):
        conveyor.answer(runner, text(), 0, None, silent)


def test_a_model_with_an_encoder_and_a_decoder_is_refused() -> None:
    """It is small, and runs whole."""
    folder = weights_of("t5-small").folder
    with pytest.raises(ParityError, match="run it without --streamed"), Original(folder).stream():
        pytest.fail("it could have been run")


def test_an_interrupt_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """No thread, and no stage that is still loaded."""
    runner = runner_of("original", "smollm-135m", weights_of("smollm-135m").folder)
    before = threading.active_count()
    with runner.stream() as line:
        progress = iter(range(40))

        def interrupted(_done: int, _total: int) -> None:
            if next(progress, None) is None:
                raise KeyboardInterrupt

        monkeypatch.setattr(Original, "stream", lambda _: _again(line))
        with pytest.raises(KeyboardInterrupt):
            conveyor.answer(runner, text(), GENERATED, None, interrupted)
        assert threading.active_count() == before
        parameters: Mapping[str, Any] = dict(line.model.named_parameters())  # type: ignore[attr-defined]
        assert all(parameter.is_meta for parameter in parameters.values())
        assert_same(
            base.answer(runner, text(), 1, None, silent)[0], conveyor.answer(runner, text(), 1, None, silent)[0]
        )


def _again(line: conveyor.Line) -> Any:
    from contextlib import nullcontext

    return nullcontext(line)
