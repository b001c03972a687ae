"""The table of situations: for every preset each gives prompts with the property it is named for, or says why not."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from models import registry
from models.authoring.config import DecoderConfig, EncoderDecoderConfig, ModelConfig, VisionLanguageConfig
from models.authoring.hf_config import HFConfig
from models.authoring.session import Tensors, image_lengths, session_inputs, shipped_sessions
from parity.errors import PromptError
from parity.inputs import Inputs, Material, TokenizedPrompt
from parity.ladder import crosses, fit
from parity.runners.base import shortest
from parity.runners.driver import plan_chunks
from parity.situations import ALL, SITUATIONS, inputs_of, is_made, make
from parity.situations.making import fitting

PRESETS = [model.name for model in registry.models()]
BEGIN, END, UNKNOWN = 1, 2, 3
GENERATE = 8


@cache
def config_of(preset: str) -> ModelConfig:
    model = registry.get(preset)
    return model.family.config_from(HFConfig(model.preset.values(tiny=True), preset))


def own_media(config: ModelConfig) -> Tensors:
    """A picture, a sound or a source of text, in the original's names."""
    if isinstance(config, VisionLanguageConfig):
        call = shipped_sessions(config, 8, grids=[(4, 4)])[1].calls[0]
        grid = {"image_grid_thw": np.asarray([(1, 4, 4)])} if call.entry != "encode" else {}
        return {"pixel_values": call.tensors["pixel_values"], **grid}
    if isinstance(config, EncoderDecoderConfig):
        sound = np.random.default_rng(0).normal(size=(1, 20_000)).astype(np.float32)
        return {"input_values": sound} if config.stem else {"input_ids": np.arange(10, 30)[None]}
    return {}


@cache
def material(preset: str) -> Material:
    """Text that never repeats itself, and a set of one prompt of the model's own."""
    config = config_of(preset)
    media = own_media(config)
    ids: tuple[int, ...] = (BEGIN, 10, 11, 12)
    if isinstance(config, VisionLanguageConfig):
        ids = (*[config.image_token] * sum(image_lengths(config, media)), *ids)
    if isinstance(config, EncoderDecoderConfig):
        ids = (config.decoder_start,)
    rows = sum(call.rows for call in session_inputs(config, ids, media, len(ids)).calls)
    prompt = TokenizedPrompt("own", ids, tuple(range(20, 36)), media, rows)
    return Material(
        text=tuple(range(4, 304)),
        begins=(BEGIN,),
        ends=(END,),
        special=(BEGIN, END, UNKNOWN),
        sets=(Inputs("own", "own", "0", "0", (prompt,)),),
        tokenizer_sha256="0",
    )


@cache
def made(preset: str) -> Inputs:
    return make(ALL, material(preset), config_of(preset), generate=GENERATE)


def of(preset: str, situation: str) -> tuple[TokenizedPrompt, ...]:
    """The prompts of a situation; none where it says why not."""
    inputs = made(preset)
    if situation in inputs.left_out:
        return ()
    return inputs.situations[situation].prompts


def calls(preset: str, prompt: TokenizedPrompt) -> list[tuple[int, int]]:
    """Start and end, padding counted, of every call that takes tokens of the prompt, in the export that it goes to."""
    config, inputs = config_of(preset), made(preset)
    exports = fit(config, inputs, (), None, GENERATE)
    slots = shortest([export.cache_length for export in exports], prompt.until(GENERATE))
    export = next(export for export in exports if export.cache_length == slots)
    given = session_inputs(config, prompt.prompt, prompt.media, prompt.until(GENERATE))
    through = () if given.prefill is None else export.prefill_lengths if prompt.through is None else prompt.through
    assert set(through) <= set(export.prefill_lengths)
    taken = []
    filled = 0
    for tokens, decoded, whole in (
        (prompt.prompt, prompt.continuation, given.whole),
        (prompt.turn, prompt.reply, False),
    ):
        chunks = plan_chunks(len(tokens), through, slots, whole=whole, filled=filled) if tokens else ()
        taken += [(filled + chunk.start, filled + chunk.start + chunk.length) for chunk in chunks]
        filled += len(tokens)
        taken += [(filled + i, filled + i + 1) for i in range(len(decoded))]
        filled += len(decoded)
    assert taken[-1][1] <= slots
    return taken


@pytest.mark.parametrize("preset", PRESETS)
def test_every_situation_is_made_or_says_why_not(preset) -> None:
    """Nothing is left out in silence; ids are unique, and every session can be asked, driven and compared."""
    config, inputs = config_of(preset), made(preset)
    assert {*inputs.situations, *inputs.left_out} == {*SITUATIONS, "own"}
    assert not set(inputs.situations) & set(inputs.left_out)
    assert all(len(reason) > 10 for reason in inputs.left_out.values())
    assert len({prompt.id for prompt in inputs.prompts}) == len(inputs.prompts)
    for prompt in inputs.prompts:
        assert prompt.id.startswith(f"{prompt.situation}/")
        assert prompt.prompt
        assert prompt.decoded > 0
        assert prompt.positions <= config.max_positions
        assert not crosses(config.boundary, prompt, GENERATE)
        assert max(*prompt.prompt, *prompt.continuation, *prompt.turn, *prompt.reply) < config.vocab_size
        assert calls(preset, prompt)


@pytest.mark.parametrize("preset", PRESETS)
def test_signatures_are_one_prompt_in_several_ways(preset) -> None:
    """Ids are the same however they go; one way is each prefill length, and one is none where that can be."""
    ways: dict[tuple[int, ...], set[tuple[int, ...] | None]] = {}
    for prompt in of(preset, "signatures"):
        ways.setdefault((*prompt.prompt, *prompt.continuation), set()).add(prompt.through)
    for found in ways.values():
        assert {(length,) for length in made(preset).prefill_lengths} <= found
    if isinstance(config_of(preset), DecoderConfig):
        assert all(() in found for found in ways.values())
        assert any(len(calls(preset, prompt)) > prompt.decoded + 1 for prompt in of(preset, "signatures"))


@pytest.mark.parametrize("preset", PRESETS)
def test_edges_are_exactly_one_under_and_one_over(preset) -> None:
    """Around each prefill length, through it; twice the length too where prompts are cut. Sources around their most."""
    config, prompts = config_of(preset), of(preset, "edges")
    if isinstance(config, EncoderDecoderConfig):
        name = "input_values" if config.stem else "input_ids"
        sizes = sorted(prompt.media[name].shape[1] for prompt in prompts)
        assert sizes[-2] == sizes[-1] - 1
        assert sizes[-1] == max(prompt.media[name].shape[1] for prompt in made(preset).prompts)
        if config.stem:
            assert config.stem.rows(sizes[0]) + 1 == config.stem.rows(sizes[1]) == config.stem.rows(sizes[2])
        return
    counts = {
        length: {len(p.prompt) for p in prompts if p.through == (length,)} for length in made(preset).prefill_lengths
    }
    for length, found in counts.items():
        assert {length - 1, length} <= found
        if isinstance(config, DecoderConfig):
            assert {length + 1, 2 * length - 1, 2 * length + 1} <= found
            assert 2 * length in found or 2 * length == config.boundary


@pytest.mark.parametrize("preset", PRESETS)
def test_padding_is_most_of_a_prefill_and_overwritten(preset) -> None:
    """The only prefill allowed is the longest; decode goes on past its end."""
    config, prompts = config_of(preset), of(preset, "padding")
    if isinstance(config, EncoderDecoderConfig):
        rows = [prompt.encoded_rows for prompt in prompts]
        assert min(rows) * 4 < max(prompt.encoded_rows for prompt in made(preset).prompts)
        return
    longest = made(preset).prefill_lengths[-1]
    assert all(prompt.through == (longest,) and len(prompt.prompt) <= 3 for prompt in prompts)
    assert [prompt for prompt in prompts if prompt.positions > longest and not prompt.turn]


@pytest.mark.parametrize("preset", PRESETS)
def test_windows_are_kept_and_left_in_decode_and_in_prefill(preset) -> None:
    """For every window a session within it, one that leaves it in decode and one whose prompt is longer."""
    config = config_of(preset)
    text = config.text if isinstance(config, VisionLanguageConfig) else config
    windows = {block.attention.window for block in text.blocks} - {None} if isinstance(text, DecoderConfig) else set()
    assert bool(of(preset, "window")) == bool(windows)
    for size in windows:
        sessions = [(len(prompt.prompt), prompt.positions) for prompt in of(preset, "window")]
        assert any(end <= size for _, end in sessions)
        assert any(begin < size and end > 2 * size for begin, end in sessions)
        assert any(begin > size for begin, _ in sessions)
        if isinstance(config, DecoderConfig):  # a later call of prefill looks back into an earlier one
            assert any(start > size for p in of(preset, "window") for start, end in calls(preset, p) if end > start + 1)


@pytest.mark.parametrize("preset", PRESETS)
def test_turns_are_prefilled_on_a_filled_cache(preset) -> None:
    """After the continuation several tokens go in one call at a position that is not the first, then decode."""
    prompts = of(preset, "turns")
    assert bool(prompts) == ("turns" not in made(preset).left_out)
    pieces = []
    for prompt in prompts:
        assert prompt.continuation
        assert prompt.reply
        begin = len(prompt.prompt) + len(prompt.continuation)
        pieces += [end - start for start, end in calls(preset, prompt) if start == begin]
    # One goes token by token on purpose; another where no prefill fits a small cache.
    assert sum(piece > 1 for piece in pieces) >= 2 or not prompts


@pytest.mark.parametrize("preset", PRESETS)
def test_full_writes_the_last_slot(preset) -> None:
    """Every cache of the export is filled exactly, and by its last slot in decode; a padded prefill ends at its end."""
    config = config_of(preset)
    slots = [export.cache_length for export in fit(config, made(preset), (), None, GENERATE)]
    prompts = of(preset, "full")
    assert {prompt.until(GENERATE) for prompt in prompts} == set(slots)
    for prompt in prompts:
        assert max(end for _, end in calls(preset, prompt)) == prompt.positions
    last = [calls(preset, prompt)[-1] for prompt in prompts]
    assert {(length - 1, length) for length in slots} <= set(last)
    if isinstance(config, DecoderConfig):
        for length in slots:
            assert any(end == length and end - start > 1 for prompt in prompts for start, end in calls(preset, prompt))


@pytest.mark.parametrize("preset", PRESETS)
def test_batches_are_two_rows_each_compared(preset) -> None:
    """Every prompt is the row beside its other one, once as the first and once as the second."""
    prompts = of(preset, "batch")
    assert {prompt.row for prompt in prompts} <= {0, 1}
    said = {(*prompt.prompt, *prompt.continuation): prompt for prompt in prompts}
    for prompt in prompts:
        other = said[prompt.beside]
        assert len(prompt.beside) == prompt.positions
        assert prompt.prompt != other.prompt
        assert {prompt.row, other.row} == {0, 1}
    assert [prompt.id for prompt in made(preset).one_row.prompts] == [
        p.id for p in made(preset).prompts if not p.beside
    ]


@pytest.mark.parametrize("preset", PRESETS)
def test_repeated_and_special_are_what_they_say(preset) -> None:
    """Long runs of one token; marks with text on both sides."""
    config = config_of(preset)
    runs = [
        (*map(int, p.media["input_ids"][0]), *p.continuation)
        if "input_ids" in p.media
        else (*p.prompt, *p.continuation)
        for p in of(preset, "repeated")
    ]
    assert any(run.count(max(run, key=run.count)) >= 20 for run in runs)
    texts = [prompt.continuation for prompt in of(preset, "special")]
    if isinstance(config, DecoderConfig):
        texts += [prompt.prompt for prompt in of(preset, "special")]
    for text in texts[:1] if isinstance(config, EncoderDecoderConfig) else texts:
        inside = [at for at, token in enumerate(text) if at and token in (BEGIN, END, UNKNOWN)]
        assert inside
        assert max(inside) < len(text) - 1


def test_beyond_is_beyond() -> None:
    """The original context of Llama 3's scaling is left in decode and in prefill; others say what does not change."""
    scaling = config_of("llama-3.2-1b").rope.scaling
    sessions = [(len(prompt.prompt), prompt.positions) for prompt in of("llama-3.2-1b", "beyond")]
    assert any(begin < scaling.original_max_positions < end for begin, end in sessions)
    assert any(begin > 2 * scaling.original_max_positions for begin, _ in sessions)
    assert "2048" in made("smollm-135m").left_out["beyond"]
    assert "regimes" in made("phi-3.5-mini").left_out["beyond"]
    assert (
        max(prompt.positions for prompt in of("moonshine-tiny", "beyond")) == config_of("moonshine-tiny").max_positions
    )
    distance = config_of("t5-small").encoder.relative_bias.max_distance
    for prompt in of("t5-small", "beyond"):
        assert prompt.media["input_ids"].shape[1] > distance + 1
        assert prompt.positions > distance + 1


def test_what_does_not_apply_is_an_error_when_asked_for() -> None:
    """By name a situation that has no prompts is no empty set."""
    with pytest.raises(PromptError, match="window does not apply: no layer has a window; choose another prompt set"):
        make("window", material("smollm-135m"), config_of("smollm-135m"))


def test_a_set_the_model_cannot_be_asked_is_left_out_with_the_reason() -> None:
    """A prompt on both sides of a boundary, or longer than what the model knows, takes its set along."""
    config, own = config_of("phi-3.5-mini"), material("phi-3.5-mini")
    crossing = replace(own.sets[0], prompts=(TokenizedPrompt("crossing", (5,) * 30, (6,) * 16),))
    found = make(ALL, replace(own, sets=(crossing,)), config, generate=GENERATE)
    assert found.left_out["own"].startswith("crossing begins within 32 positions")
    config, own = config_of("smollm-135m"), material("smollm-135m")
    found = make(ALL, own, replace(config, max_positions=19), generate=GENERATE)
    assert found.left_out["own"] == "own needs 20 positions, the model knows 19"


@pytest.mark.parametrize("situation", SITUATIONS)
def test_identity_is_of_what_is_made(situation) -> None:
    """Made twice it is the same; other text, or another way of driving, is another set."""
    config, own = config_of("gemma-2-2b"), material("gemma-2-2b")
    if situation == "beyond":
        config, own = config_of("llama-3.2-1b"), material("llama-3.2-1b")
    first = make(situation, own, config)
    assert first.sha256 == make(situation, own, config).sha256
    assert first.sha256 != make(situation, replace(own, text=own.text[::-1]), config).sha256
    assert {prompt.situation for prompt in first.prompts} == {situation}
    ways = make(situation, own, config, prefill_lengths=(8, 12))
    driven = {"signatures", "edges", "padding", "window", "turns", "batch", "full"}
    assert (ways.sha256 != first.sha256) == (situation in driven)


def test_the_cache_asked_for_is_the_one_filled() -> None:
    """``--kv-cache`` decides what is full."""
    found = make("full", material("smollm-135m"), config_of("smollm-135m"), cache_length=77)
    assert {prompt.positions for prompt in found.prompts} == {77}


def test_a_continuation_stops_at_the_boundary() -> None:
    """Within it a continuation is cut there; what leaves nothing to continue, or a second turn, is left out."""
    config = config_of("phi-3.5-mini")
    sessions = [TokenizedPrompt(str(count), (5,) * count, (6,) * 8) for count in (20, 30, 31, 32, 33)]
    turn = replace(sessions[0], turn=(7,) * 9, reply=(8,))
    assert [(prompt.id, prompt.decoded) for prompt in fitting(config, [*sessions, turn])] == [
        ("20", 8),
        ("30", 2),
        ("31", 1),
        ("33", 8),
    ]


def test_prompts_are_made_from_the_checkpoints_tokenizer() -> None:
    """Text begins as the tokenizer begins it; its marks are its own; sets of a decoder-only model are among all."""
    from parity.weights import resolve

    model = registry.get("gemma-2b")
    folder = resolve(model, "tiny").folder
    asked = {"prefill_lengths": (), "cache_length": None, "generate": GENERATE}
    found = inputs_of(ALL, "short", folder, config_of("gemma-2b"), **asked)
    assert {"short", "long", *SITUATIONS} == {*found.situations, *found.left_out}
    begin = found.situations["short"].prompts[0].prompt[0]
    assert all(prompt.prompt[0] == begin for prompt in found.situations["edges"].prompts)
    assert any(begin in prompt.prompt[1:] for prompt in found.situations["special"].prompts)
    assert is_made(ALL)
    assert not is_made("short")
