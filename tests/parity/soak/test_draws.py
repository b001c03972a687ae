"""A draw is the same whenever it is drawn, differs from every other, and is one that its model can take."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models import registry
from models.authoring.config import EncoderDecoderConfig, ModelConfig, VisionLanguageConfig
from models.authoring.hf_config import HFConfig
from parity.inputs import CONTINUATION_TOKENS, Inputs
from parity.ladder import fit
from parity.soak.draws import MOST_PROMPTS, Draw, draws
from parity.soak.variants import variants

VARIANTS = variants()
#: Pictures need the processor in a folder; the rest needs no folder.
WITHOUT_PICTURES = [name for name in VARIANTS if "vl" not in name and "paligemma" not in name]


def drawn(preset: str, number: int, *, seed: int = 0, files: bool = False) -> tuple[Draw, Inputs]:
    draw = Draw(seed=seed, number=number, preset=preset, files=files)
    return draw, draw.inputs(Path(), config_of(draw))


def config_of(draw: Draw) -> ModelConfig:
    return draw.model.family.config_from(HFConfig(draw.model.preset.values(tiny=True), draw.name))


def ids(inputs: Inputs) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    return [(prompt.prompt, prompt.continuation) for prompt in inputs.prompts]


def test_every_architecture_has_a_variant() -> None:
    """Every family, and within a family whatever its typed fields tell apart."""
    families = {registry.get(name).family.name for name in VARIANTS}
    assert families == set(registry.FAMILIES)
    assert {"llama-3.2-1b", "gemma-2b", "gemma-2-2b", "phi-2", "phi-3.5-mini", "phi-4-mini"} <= set(VARIANTS)
    assert {"paligemma-3b-224", "paligemma-2-3b-224", "deepseek-r1-distill-qwen-1.5b"} <= set(VARIANTS)
    # Nothing but numbers sets these apart from smaller ones.
    assert not {"smollm-1.7b", "smollm2-135m", "llama-3.2-3b", "openelm-3b", "t5-base", "gemma-7b"} & set(VARIANTS)


@settings(deadline=None, max_examples=60)
@given(preset=st.sampled_from(WITHOUT_PICTURES), number=st.integers(0, 10**6), seed=st.integers(0, 10**6))
def test_a_draw_is_its_seed_number_and_preset(preset: str, number: int, seed: int) -> None:
    """Twice the same; another number or seed is another draw."""
    draw, inputs = drawn(preset, number, seed=seed)
    again, same = drawn(preset, number, seed=seed)
    assert ids(inputs) == ids(same)
    assert draw.model.preset == again.model.preset
    assert [draw.threads(rung) for rung in "abc"] == [again.threads(rung) for rung in "abc"]
    for other, others in (drawn(preset, number + 1, seed=seed), drawn(preset, number, seed=seed + 1)):
        assert other.name != draw.name  # which the weights are drawn from
        assert ids(others) != ids(inputs)


@settings(deadline=None, max_examples=150)
@given(preset=st.sampled_from(WITHOUT_PICTURES), number=st.integers(0, 10**6), files=st.booleans())
def test_a_draw_fits_its_model(preset: str, number: int, files: bool) -> None:
    """Ids within the vocabulary, sessions on one side of a boundary, a cache that holds them."""
    draw, inputs = drawn(preset, number, files=files)
    config = config_of(draw)
    assert 1 <= len(inputs.prompts) <= MOST_PROMPTS
    for prompt in inputs.prompts:
        assert prompt.prompt
        assert 1 <= len(prompt.continuation) <= CONTINUATION_TOKENS
        assert all(0 <= token < config.vocab_size for token in (*prompt.prompt, *prompt.continuation))
    assert fit(config, inputs, (), None, draw.generate)
    if files:  # as many forced tokens as quantized rungs' limits were measured over
        assert sum(len(prompt.continuation) for prompt in inputs.prompts) == MOST_PROMPTS * CONTINUATION_TOKENS


@pytest.mark.parametrize("preset", VARIANTS)
def test_dimensions_differ_and_are_read(preset: str) -> None:
    """Over a few draws, layers and vocabulary vary, and every configuration is one that the family accepts."""
    found = {}
    for number in range(40):
        draw = Draw(seed=0, number=number, preset=preset, files=False)
        config = config_of(draw)
        text = config.text if isinstance(config, VisionLanguageConfig) else config
        stack = text.encoder if isinstance(text, EncoderDecoderConfig) else text
        found[number] = (config.vocab_size, len(stack.blocks))
    assert len({vocabulary for vocabulary, _ in found.values()}) > 3
    assert {layers for _, layers in found.values()} == {1, 2, 3, 4}


def test_lengths_reach_beyond_two_calls_and_down_to_one_token() -> None:
    """What is special about a length is met: one token, a call's, one more, two calls', beyond."""
    lengths = {len(prompt.prompt) for n in range(150) for prompt in drawn("smollm-135m", n)[1].prompts}
    assert {1, 2, 15, 16, 17, 31, 32, 33} <= lengths
    assert max(lengths) > 34
    kinds = [set(prompt.prompt) for n in range(150) for prompt in drawn("smollm-135m", n)[1].prompts]
    assert any(len(kind) == 1 for kind in kinds)
    longest = max(len(prompt.prompt) for n in range(150) for prompt in drawn("phi-3.5-mini", n)[1].prompts)
    assert longest > 32  # beyond the boundary between frequencies


def test_rungs_get_the_prompts_in_orders_of_their_own() -> None:
    """All of them, once each."""
    draw, inputs = drawn("smollm-135m", 4, files=True)
    orders = [[p.id for p in draw.shuffled(inputs, rung).prompts] for rung in ("original", "reauthored", "float")]
    assert all(sorted(order) == sorted(p.id for p in inputs.prompts) for order in orders)
    assert len({tuple(order) for order in orders}) > 1
    assert {draw.threads(f"rung {i}") for i in range(20)} == {1, 2}


def test_presets_take_turns_and_every_one_gets_files() -> None:
    """Evenly; and the command of a draw is the draw."""
    planned = list(draws(3, VARIANTS, range(20 * len(VARIANTS)), 20))
    for name in VARIANTS:
        of_preset = [draw for draw in planned if draw.preset == name]
        assert len(of_preset) == 20
        assert sum(draw.files for draw in of_preset) == 1
    assert not any(draw.files for draw in draws(3, VARIANTS, range(100), 0))
    for draw in planned[:25]:
        assert draw.command.startswith(f"parity soak --seed 3 --draw {draw.number} --model {draw.preset}")
        every = int(draw.command.rsplit(maxsplit=1)[1])
        assert list(draws(3, [draw.preset], [draw.number], every)) == [draw]


def test_draws_do_not_depend_on_whether_files_are_run() -> None:
    """Weights, threads and orders of the rungs that both have are the same."""
    draw, _ = drawn("qwen2.5-0.5b", 9)
    other = replace(draw, files=True)
    assert draw.model.preset == other.model.preset
    assert np.array_equal(draw.random("x").random(5), other.random("x").random(5))
