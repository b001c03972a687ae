"""Traces: what is written is read back, and a trace that cannot have come from a working model is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save, save_file

from parity.errors import RungError
from parity.inputs import Inputs, TokenizedPrompt
from parity.trace import BEST, PHASES, PromptTrace, Steps, Trace

# tmp_path is shared by the examples of a test; each writes the same file anew.
FILES = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
VOCABULARY = 7
INPUTS = Inputs(
    "set.jsonl",
    "the-set",
    "0",
    "0",
    (TokenizedPrompt("first", (1, 2, 3), (4, 5)), TokenizedPrompt("second/one", (6,), (0, 1, 2))),
)


def prompt_trace(prompt: TokenizedPrompt, seed: int = 0, dtype: type = np.float32, **changes: Any) -> PromptTrace:
    rng = np.random.default_rng(seed)
    sizes = {"prefill": len(prompt.prompt), "decode": len(prompt.continuation)}
    logits = {phase: rng.standard_normal((size, VOCABULARY)).astype(dtype) for phase, size in sizes.items()}
    return PromptTrace(**{**logits, "steps": steps(rng), **changes})


def steps(rng: np.random.Generator, count: int = 3) -> Steps:
    ids = np.stack([rng.permutation(VOCABULARY)[:BEST] for _ in range(count)]).astype(np.int32)
    margins = np.sort(rng.uniform(0, 9, (count, BEST)), axis=1).astype(np.float32)
    return Steps(ids, margins - margins[:, :1], rng.integers(0, 2, count).astype(bool))


def assert_same_steps(ours: Steps, theirs: Steps) -> None:
    for part in ("ids", "margins", "ends"):
        mine, yours = getattr(ours, part), getattr(theirs, part)
        assert mine.dtype == yours.dtype
        np.testing.assert_array_equal(mine, yours)


def good(seed: int = 0, dtype: type = np.float32) -> Trace:
    return Trace({prompt.id: prompt_trace(prompt, seed + i, dtype) for i, prompt in enumerate(INPUTS.prompts)})


def with_logits(name: str, phase: str, logits: np.ndarray) -> Trace:
    """A good trace with one phase of one prompt exchanged."""
    prompt = next(prompt for prompt in INPUTS.prompts if prompt.id == name)
    return Trace({**good().prompts, name: prompt_trace(prompt, **{phase: logits})})


def refused(trace: Trace, *words: str) -> str:
    """Why the trace is refused: one line with the rung's name and every one of ``words``."""
    with pytest.raises(RungError) as caught:
        trace.check(INPUTS, VOCABULARY, "the-rung")
    message = str(caught.value)
    assert "the-rung" in message
    assert "\n" not in message
    for word in words:
        assert word in message
    return message


EVERYWHERE = pytest.mark.parametrize(
    ("name", "phase"), [(prompt.id, phase) for prompt in INPUTS.prompts for phase in PHASES]
)

# -- files


@FILES
@given(seed=st.integers(0, 2**31), dtype=st.sampled_from([np.float16, np.float32, np.float64]))
def test_round_trip(tmp_path: Path, seed: int, dtype: type) -> None:
    """Every bit comes back: logits in their dtype, choices with their margins and ends, prompts in any name."""
    trace = good(seed, dtype)
    trace.save(tmp_path / "trace.safetensors")
    back = Trace.load(tmp_path / "trace.safetensors")
    assert set(back.prompts) == set(trace.prompts)
    for name, prompt in trace.prompts.items():
        for phase in PHASES:
            ours, theirs = getattr(back.prompts[name], phase), getattr(prompt, phase)
            assert ours.dtype == dtype
            np.testing.assert_array_equal(ours, theirs)
        assert_same_steps(back.prompts[name].steps, prompt.steps)
    back.check(INPUTS, VOCABULARY, "the-rung")


def test_slices_are_written_as_they_look(tmp_path: Path) -> None:
    """Logits that are a view with gaps, or turned round in memory, are stored in order."""
    wide = np.random.default_rng(0).standard_normal((4, 2 * VOCABULARY)).astype(np.float32)
    prompt = PromptTrace(prefill=wide[::2, ::2], decode=np.asfortranarray(wide[:, :VOCABULARY]))
    Trace({"p": prompt}).save(tmp_path / "trace.safetensors")
    back = Trace.load(tmp_path / "trace.safetensors").prompts["p"]
    np.testing.assert_array_equal(back.prefill, prompt.prefill)
    np.testing.assert_array_equal(back.decode, prompt.decode)
    assert back.steps.chosen == ()
    assert_same_steps(back.steps, Steps())


def test_saving_as_another_dtype(tmp_path: Path) -> None:
    """The logits are rounded once, and nothing else is."""
    trace = good(dtype=np.float64)
    trace.save(tmp_path / "trace.safetensors", np.float32)
    back = Trace.load(tmp_path / "trace.safetensors")
    for name, prompt in trace.prompts.items():
        assert back.prompts[name].prefill.dtype == np.float32
        np.testing.assert_array_equal(back.prompts[name].prefill, prompt.prefill.astype(np.float32))
        np.testing.assert_array_equal(back.prompts[name].decode, prompt.decode.astype(np.float32))
        assert_same_steps(back.prompts[name].steps, prompt.steps)


def test_failed_save_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trace is written whole or not at all; an earlier one stays as it was."""
    path = tmp_path / "trace.safetensors"
    good(seed=1).save(path)
    before = path.read_bytes()

    def half_written(_tensors: Any, temporary: Path) -> None:
        temporary.write_bytes(before[:100])
        raise KeyboardInterrupt

    monkeypatch.setattr("safetensors.numpy.save_file", half_written)
    with pytest.raises(KeyboardInterrupt):
        good(seed=2).save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def load_refused(path: Path) -> None:
    with pytest.raises(RungError) as caught:
        Trace.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@FILES
@given(share=st.floats(0, 1, exclude_max=True))
def test_truncated_file(tmp_path: Path, share: float) -> None:
    """Cut anywhere, in the header or in the data, down to nothing."""
    path = tmp_path / "trace.safetensors"
    good().save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    load_refused(path)


@pytest.mark.parametrize("content", [b"", b"not a trace at all", b"\x02\0\0\0\0\0\0\0[]", b"\xff" * 64], ids=repr)
def test_file_that_is_no_trace(tmp_path: Path, content: bytes) -> None:
    """Empty, text, a header that is no object, a length beyond the file."""
    path = tmp_path / "trace.safetensors"
    path.write_bytes(content)
    load_refused(path)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    """No file, or a folder in its place."""
    load_refused(tmp_path / "absent.safetensors")
    load_refused(tmp_path)


@pytest.mark.parametrize("part", [*PHASES, "ids", "margins", "ends"])
def test_file_without_a_part(tmp_path: Path, part: str) -> None:
    """A whole safetensors file that lacks one part of one prompt."""
    path = tmp_path / "trace.safetensors"
    parts = {name: np.ones((2, 3), np.float32) for name in (*PHASES, "ids", "margins", "ends")}
    save_file({f"p/{name}": value for name, value in parts.items() if name != part}, path)
    load_refused(path)


def test_file_of_a_models_weights(tmp_path: Path) -> None:
    """Tensors with names of another kind."""
    path = tmp_path / "trace.safetensors"
    path.write_bytes(save({"model.norm.weight": np.ones(3, np.float32)}))
    load_refused(path)


# -- check


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_good_traces_are_accepted(dtype: type) -> None:
    """In any floating-point dtype; nothing is returned and nothing raised."""
    trace = good(dtype=dtype)
    before = {name: prompt.prefill.copy() for name, prompt in trace.prompts.items()}
    trace.check(INPUTS, VOCABULARY, "the-rung")
    assert all(np.array_equal(trace.prompts[name].prefill, logits) for name, logits in before.items())


@EVERYWHERE
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_values_that_are_not_finite(name: str, phase: str, value: float, dtype: type) -> None:
    """A single one is refused, with prompt, phase and position."""
    logits = getattr(good().prompts[name], phase).astype(dtype)
    logits[-1, -1] = value
    refused(with_logits(name, phase, logits), name, phase, f"1 of {len(logits)} positions, first at {len(logits) - 1}")


@EVERYWHERE
@pytest.mark.parametrize("value", [0.0, -3.5, 1e30])
def test_constant_logits(name: str, phase: str, value: float) -> None:
    """One position whose logits are all alike is refused: no model gives that, a dead buffer does."""
    logits = getattr(good().prompts[name], phase).copy()
    logits[-1] = value
    refused(with_logits(name, phase, logits), name, phase, f"position {len(logits) - 1}")


@EVERYWHERE
@pytest.mark.parametrize(
    "index",
    [np.s_[:-1], np.s_[:, :-1], np.s_[:0], np.s_[:, :0], np.s_[0], np.s_[None], list(range(9))],
    ids=["truncated", "vocabulary", "no positions", "no vocabulary", "one axis", "three axes", "more positions"],
)
def test_wrong_shapes(name: str, phase: str, index: Any) -> None:
    """Both the shape and what it should be are in the message."""
    whole = getattr(good().prompts[name], phase)
    padded = np.concatenate([whole] * 99) if isinstance(index, list) else whole
    logits = padded[index]
    refused(with_logits(name, phase, logits), name, phase, str(list(logits.shape)), str(list(whole.shape)))


@EVERYWHERE
@pytest.mark.parametrize("dtype", [np.int8, np.int32, bool, complex])
def test_other_dtypes(name: str, phase: str, dtype: type) -> None:
    """Logits that are not floating point, such as those of an output that was never dequantized."""
    logits = (10 * getattr(good().prompts[name], phase)).astype(dtype)
    refused(with_logits(name, phase, logits), name, phase, np.dtype(dtype).name)


@pytest.mark.parametrize("missing", [prompt.id for prompt in INPUTS.prompts])
def test_missing_prompt(missing: str) -> None:
    """A prompt without an answer."""
    trace = Trace({name: prompt for name, prompt in good().prompts.items() if name != missing})
    refused(trace, INPUTS.name)


@pytest.mark.parametrize("extra", ["third", "FIRST", ""])
def test_extra_prompt(extra: str) -> None:
    """An answer to a prompt that nobody asked."""
    trace = Trace({**good().prompts, extra: prompt_trace(INPUTS.prompts[0])})
    refused(trace, INPUTS.name)


def test_no_prompts() -> None:
    """An empty trace covers nothing."""
    refused(Trace({}), INPUTS.name)


@pytest.mark.parametrize("change", ["missing", "extra"])
def test_missing_and_extra_prompts_are_named(change: str) -> None:
    """A person with two hundred prompts needs to know which."""
    prompts = dict(good().prompts)
    if change == "missing":
        del prompts["second/one"]
    else:
        prompts["third"] = prompt_trace(INPUTS.prompts[0])
    refused(Trace(prompts), "second/one" if change == "missing" else "third")


@pytest.mark.parametrize("part", ["ids", "margins", "ends"])
@pytest.mark.parametrize("index", [np.s_[:-1], np.s_[..., :1]], ids=["a step less", "a column"])
def test_parts_of_steps_belong_together(part: str, index: Any) -> None:
    """Otherwise the comparison of generations would index past their end."""
    whole = prompt_trace(INPUTS.prompts[0]).steps
    changed = replace(whole, **{part: getattr(whole, part)[index]})
    refused(Trace({**good().prompts, "first": prompt_trace(INPUTS.prompts[0], steps=changed)}), "first")


@pytest.mark.parametrize(("part", "value"), [("ids", VOCABULARY), ("ids", -1), ("margins", -0.1), ("margins", np.nan)])
def test_steps_that_no_model_takes(part: str, value: float) -> None:
    """An id beyond the vocabulary, a margin below zero or none at all."""
    whole = prompt_trace(INPUTS.prompts[0]).steps
    values = getattr(whole, part).copy()
    values[1, 2] = value
    changed = prompt_trace(INPUTS.prompts[0], steps=replace(whole, **{part: values}))
    refused(Trace({**good().prompts, "first": changed}), "first", "generation")


def test_a_margin_is_that_of_the_token() -> None:
    """Of the token asked for; of one that is not kept, the last that is."""
    taken = Steps(np.asarray([[4, 2, 0, 1, 3]], np.int32), np.asarray([[0, 1, 2, 3, 4]], np.float32), np.zeros(1, bool))
    assert [taken.margin(0, token) for token in (4, 2, 0, 1, 3, 6)] == [0, 1, 2, 3, 4, 4]


def test_saving_what_the_dtype_cannot_hold(tmp_path: Path) -> None:
    """A recording in half precision of logits above 65504 is refused when it is made, not when it is replayed."""
    trace = with_logits("first", "decode", np.full((2, VOCABULARY), 1e5, np.float32))
    with pytest.raises(RungError):
        trace.save(tmp_path / "trace.safetensors", np.float16)
