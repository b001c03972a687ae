"""The exact port: ours in float64 is the oracle to float64's rounding, and the smallest mistakes are far beyond it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models import registry
from models.authoring.family import Family
from models.authoring.hf_config import HFConfig
from parity.compare.limits import PORT_LIMITS, ROUNDING_LIMITS
from parity.compare.measuring import measure
from parity.compare.verdict import Verdict, judge
from parity.inputs import Inputs
from parity.runners.base import answer
from parity.runners.original import Original
from parity.runners.precision import computing_in
from parity.runners.reauthored import Reauthored
from parity.trace import Trace
from parity.weights import resolve
from tests.made_floors import drawn_floor
from tests.prompt_kinds import prompt

#: One of each family, and of each quirk: windows, soft-caps, LongRoPE, biases, layers that differ, towers, sounds.
PRESETS = [
    "smollm-135m",
    "llama-3.2-1b",
    "qwen2.5-0.5b",
    "gemma-2b",
    "gemma-2-2b",
    "phi-2",
    "phi-3.5-mini",
    "phi-4-mini",
    "openelm-270m",
    "t5-small",
    "moonshine-tiny",
    "paligemma-3b-224",
    "paligemma-2-3b-224",
    "qwen2.5-vl-3b",
]


def silent(_done: int, _total: int) -> None:
    """Progress that nobody watches."""


def trace_of(runner: Original | Reauthored, inputs: Inputs) -> Trace:
    return answer(runner, inputs, 0, None, silent)[0]


class Model:
    """A tiny model and its short prompt."""

    def __init__(self, name: str) -> None:
        model = registry.get(name)
        self.folder: Path = resolve(model, "tiny").folder
        self.config = model.family.config_from(HFConfig.load(self.folder))
        self.inputs = Inputs("ids", "", "", "", (prompt(self.config),))
        # Within the boundary between frequencies, where there is one.
        self.exact = Reauthored(
            model.family.name, self.folder, (self.config.boundary or 64,), name="reauthored64", precision="float64"
        )
        self.oracle = trace_of(Original(self.folder, "float64"), self.inputs)


@pytest.mark.parametrize("name", PRESETS)
def test_it_is_the_oracle_to_the_rounding_of_float64(name: str) -> None:
    """Prefill, decode through the cache, and what an encoder makes; a hundred million times finer than float32."""
    model = Model(name)
    found = trace_of(model.exact, model.inputs)
    for at, expected in model.oracle.prompts.items():
        for part in ("prefill", "decode", "encoded"):
            want, have = getattr(expected, part), getattr(found.prompts[at], part)
            assert (want is None) == (have is None)
            if want is not None:
                assert have.dtype == np.float64
                assert np.linalg.norm(have - want) <= 1e-14 * np.linalg.norm(want)
                assert (np.linalg.norm(have - want, axis=1) <= 1e-13 * np.linalg.norm(want, axis=1)).all()


def verdicts(model: Model) -> tuple[Verdict, Verdict]:
    """Of the model as it is now: as an exact port, and in float32, held to the floor of the sound one."""
    noisy = replace(model.exact, name="noise floor", precision="float32", noisy=True, at_once=True)
    floor = drawn_floor(noisy, model.config, model.inputs, trace_of(model.exact, model.inputs))
    exact = measure(model.oracle, trace_of(model.exact, model.inputs), model.inputs, floor=floor.in_float64)["logits"]
    plain = trace_of(replace(model.exact, precision="float32"), model.inputs)
    rounded = measure(model.oracle, plain, model.inputs, floor=floor)["logits"]
    return (
        judge("original64", "reauthored64", "port", exact, PORT_LIMITS).verdict,
        judge("original64", "reauthored", "rounding", rounded, ROUNDING_LIMITS).verdict,
    )


@pytest.fixture
def loading(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Any], None]], None]:
    """From now on every model of ours is changed as it is loaded."""
    load = Family.load

    def plant(change: Callable[[Any], None]) -> None:
        def changed(family: Family, *arguments: Any, **named: Any) -> Any:
            model = load(family, *arguments, **named)
            with torch.no_grad():
                change(model)
            return model

        monkeypatch.setattr(Family, "load", changed)

    return plant


@pytest.mark.parametrize("name", ["smollm-135m", "gemma-2-2b", "phi-2", "t5-small"])
def test_a_sound_port_passes_both_questions(name: str) -> None:
    assert verdicts(Model(name)) == (Verdict.PASS, Verdict.PASS)


@pytest.mark.parametrize("name", ["smollm-135m", "gemma-2-2b", "phi-2", "t5-small", "openelm-270m"])
def test_an_epsilon_of_twice_the_size_is_no_exact_port(name: str, loading: Callable[..., None]) -> None:
    """2e-6 for 1e-6, in every norm: rounding in float32 may hide it, float64 does not."""
    model = Model(name)

    def twice(loaded: Any) -> None:
        norms = [module for module in loaded.modules() if hasattr(module, "eps")]
        assert norms
        for norm in norms:
            norm.eps *= 2

    loading(twice)
    assert verdicts(model)[0] is Verdict.FAIL


@pytest.mark.parametrize("name", ["smollm-135m", "llama-3.2-1b", "phi-3.5-mini", "gemma-2-2b", "qwen2.5-vl-3b"])
def test_a_base_that_is_off_by_a_millionth_is_no_exact_port(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Theta times 1 + 1e-6 passes for rounding, and is none."""
    from models.layers import rope

    model, frequencies = Model(name), rope.inverse_frequencies
    monkeypatch.setattr(
        rope, "inverse_frequencies", lambda c, p=0: frequencies(replace(c, theta=c.theta * (1 + 1e-6)), p)
    )
    assert verdicts(model) == (Verdict.FAIL, Verdict.PASS)


def test_a_weight_that_is_off_by_one_part_in_ten_billion_is_no_exact_port(loading: Callable[..., None]) -> None:
    """One matrix of one layer."""
    model = Model("smollm-135m")
    loading(lambda loaded: loaded.get_parameter("blocks.1.mlp.up_proj.weight").mul_(1 + 1e-10))
    assert verdicts(model) == (Verdict.FAIL, Verdict.PASS)


def test_everything_is_made_in_float64() -> None:
    """Parameters, tables and caches; the default type is as it was afterwards, whatever happens."""
    model = Model("smollm-135m")
    with model.exact.loaded() as (loaded, noise):
        assert noise is None
        assert {tensor.dtype for tensor in loaded.state_dict().values()} == {torch.float64}
        assert {tensor.dtype for tensor in loaded.empty_cache(8).values()} == {torch.float64}
        assert {buffer.dtype for buffer in loaded.buffers() if buffer.is_floating_point()} <= {torch.float64}
    assert torch.get_default_dtype() is torch.float32

    def stopping() -> None:
        with computing_in("float64"):
            assert torch.ones(1).dtype is torch.float64
            raise KeyError

    with pytest.raises(KeyError):
        stopping()
    assert torch.get_default_dtype() is torch.float32
