"""Faults planted in one stage are found in that stage; sound models have none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from models.authoring.family import Family
from parity.bisect.watching import tensor_errors
from parity.compare.bisect import Place

KINDS = {
    "smollm-135m": ["embed", "block_0", "block_1", "block_2", "head"],
    "gemma-2-2b": ["embed", "block_0", "block_1", "block_2", "head"],
    "phi-2": ["embed", "block_0", "block_1", "block_2", "head"],
    "phi-3.5-mini": ["embed", "block_0", "block_1", "block_2", "head"],
    "openelm-270m": ["embed", "block_0", "block_1", "block_2", "head"],
    "t5-small": ["embed", "decoder_0", "decoder_1", "decoder_2", "head"],
    "moonshine-tiny": ["embed", "decoder_0", "decoder_1", "head"],
    "paligemma-2-3b-224": ["embed", "place", "block_0", "block_1", "block_2", "head"],
    "qwen2.5-vl-3b": ["embed", "place", "block_0", "block_1", "block_2", "head"],
}
ENCODERS = {
    "t5-small": ["stem", "encoder_0", "encoder_1", "encoder_2", "encoder_norm", "cross_0", "cross_1", "cross_2"],
    "moonshine-tiny": ["stem", "encoder_0", "encoder_1", "encoder_2", "encoder_norm", "cross_0", "cross_1"],
    "paligemma-2-3b-224": ["stem", "vision_0", "vision_1", "vision_2", "vision_norm", "projector"],
    "qwen2.5-vl-3b": ["stem", "vision_0", "vision_1", "vision_2", "merger"],
}


@pytest.mark.parametrize("name", KINDS)
def test_a_sound_port_has_no_bad_stage(name: str, prepared) -> None:
    """And every boundary is compared, in prefill, in decode and in the encoder, against a floor of its own."""
    found = prepared(name).bisect()
    assert found.first is None, found.remark
    by_phase = {phase: [row.stage for row in found.stages if row.phase == phase] for phase in ("prefill", "decode")}
    assert by_phase["prefill"] == KINDS[name]
    assert by_phase["decode"] == [stage for stage in KINDS[name] if stage != "place"]
    assert [row.stage for row in found.stages if row.phase == "encode"] == ENCODERS.get(name, [])
    assert all(row.ratio < 2 for row in found.stages)
    assert found.stages[-1].entering > 0


@pytest.mark.parametrize("name", KINDS)
def test_the_exact_port_has_no_bad_stage(name: str, prepared) -> None:
    """In float64, stage by stage: each is within float64's own noise, a billion times below what float32 leaves."""
    found = prepared(name).bisect_port()
    assert found.first is None, found.remark
    assert all(row.own < 1e-14 for row in found.stages)


def perturbed(path: str, by: float = 1.01) -> Callable[[Any], None]:
    """A parameter that is off by a factor."""

    def change(model: Any) -> None:
        model.get_parameter(path).mul_(by)

    return change


def swapped(owner: str, one: str, other: str) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        a, b = model.get_parameter(f"{owner}.{one}"), model.get_parameter(f"{owner}.{other}")
        kept = a.clone()
        a.copy_(b)
        b.copy_(kept)

    return change


def attribute(path: str, value: Any) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        owner, _, name = path.rpartition(".")
        setattr(model.get_submodule(owner), name, value)

    return change


LOADED = [
    ("two matrices swapped", "smollm-135m", swapped("blocks.1.mlp", "gate_proj.weight", "up_proj.weight"), "block_1"),
    ("embedding not scaled", "gemma-2-2b", attribute("embed.scale", 1.0), "embed"),
    ("final norm", "phi-2", perturbed("head.norm.weight"), "head"),
    ("final softcap", "gemma-2-2b", attribute("head.softcap", None), "head"),
    ("a gain of OpenELM", "openelm-270m", perturbed("blocks.2.attention.q_norm.weight"), "block_2"),
    ("T5's encoder", "t5-small", perturbed("encoder.blocks.1.mlp.up_proj.weight"), "encoder_1"),
    ("T5's cross keys", "t5-small", perturbed("decoder.blocks.1.cross_attention.k_proj.weight"), "cross_1"),
    ("T5's cross queries", "t5-small", perturbed("decoder.blocks.1.cross_attention.q_proj.weight"), "decoder_1"),
    ("Moonshine's stem", "moonshine-tiny", perturbed("stem.convolutions.2.bias", 1.1), "stem"),
    ("Moonshine's encoder norm", "moonshine-tiny", perturbed("encoder.norm.weight"), "encoder_norm"),
    ("SigLIP's positions", "paligemma-2-3b-224", perturbed("vision.stem.positions"), "stem"),
    ("SigLIP's last block", "paligemma-2-3b-224", perturbed("vision.stack.blocks.2.mlp.up_proj.weight"), "vision_2"),
    ("the projector", "paligemma-2-3b-224", perturbed("vision.projector.bias", 1.1), "projector"),
    ("a block in windows", "qwen2.5-vl-3b", perturbed("vision.blocks.1.attention.k_proj.weight"), "vision_1"),
    ("the merger", "qwen2.5-vl-3b", perturbed("vision.merger.up_proj.weight"), "merger"),
]  # fmt: skip


@pytest.fixture
def loading(monkeypatch) -> Callable[[Callable[[Any], None]], None]:
    """From now on every model is changed as it is loaded."""
    load = Family.load

    def plant(change: Callable[[Any], None]) -> None:
        def changed(family: Family, *arguments: Any, **named: Any) -> Any:
            model = load(family, *arguments, **named)
            with torch.no_grad():
                change(model)
            return model

        monkeypatch.setattr(Family, "load", changed)

    return plant


@pytest.mark.parametrize(("change", "name", "stage"), [(c, n, s) for _, n, c, s in LOADED], ids=[w for w, *_ in LOADED])
def test_a_fault_in_one_stage_is_found_there(change, name: str, stage: str, prepared, loading) -> None:
    """Exactly that stage is off, in whatever phases it is run, and the remark says that it is the only one."""
    sound = prepared(name)
    loading(change)
    found = sound.bisect()
    assert found.first == stage
    assert {row.stage for row in found.stages if row.bad} == {stage}
    assert "alone is off" in found.remark or "exactly one" in found.remark
    after = [row for row in found.stages if row.phase == found.phase]
    assert after[-1].entering > 10 * after[-1].limit or after[-1].stage == stage, "the error did not go on"


def test_wrong_rotary_base_is_every_block(prepared, monkeypatch) -> None:
    """What embed gives all blocks is not compared by itself: it shows in the first of them, and in all."""
    from models.layers import rope

    sound, frequencies = prepared("smollm-135m"), rope.inverse_frequencies
    monkeypatch.setattr(rope, "inverse_frequencies", lambda c, p=0: frequencies(replace(c, theta=c.theta * 1.1), p))
    found = sound.bisect()
    assert (found.first, found.phase) == ("block_0", "prefill")
    assert found.remark.startswith("every block is off: look at what they share: rotary tables, masks")
    assert {row.stage for row in found.stages if row.bad} == {"block_0", "block_1", "block_2"}


@pytest.mark.parametrize("name", ["smollm-135m", "phi-3.5-mini", "qwen2.5-vl-3b"])
def test_a_base_that_is_off_by_a_millionth_is_every_block(name: str, prepared, monkeypatch) -> None:
    """Far below what float32 could tell, it is as plain in float64 as a wrong base is."""
    from models.layers import rope

    sound, frequencies = prepared(name), rope.inverse_frequencies
    monkeypatch.setattr(
        rope, "inverse_frequencies", lambda c, p=0: frequencies(replace(c, theta=c.theta * (1 + 1e-6)), p)
    )
    found = sound.bisect_port()
    assert (found.first, found.phase) == ("block_0", "prefill")
    assert {"block_0", "block_1", "block_2"} <= {row.stage for row in found.stages if row.bad}
    assert sound.bisect().first is None


@pytest.mark.parametrize("layer", [0, 2])
def test_an_epsilon_of_twice_the_size_is_found_in_its_block(layer: int, prepared, loading) -> None:
    """The smallest porting mistake there is: in one norm of one block."""
    sound = prepared("smollm-135m")
    owner = f"blocks.{layer}.mlp_norm"

    def change(model: Any) -> None:
        norm = model.get_submodule(owner)
        norm.eps *= 2

    loading(change)
    found = sound.bisect_port()
    assert found.first == f"block_{layer}"
    assert {row.stage for row in found.stages if row.bad} == {f"block_{layer}"}


def test_rows_of_pictures_in_the_wrong_order_are_placed_wrong(prepared, monkeypatch) -> None:
    from models.authoring import vision_language

    sound = prepared("paligemma-2-3b-224")
    turned = replace(vision_language.PLACE, run=lambda h, e, rows: vision_language.place_rows(h, e.flip(1), rows))
    monkeypatch.setattr(vision_language, "PLACE", turned)
    assert sound.bisect().first == "place"


@pytest.mark.parametrize("name", ["smollm-135m", "t5-small"])
def test_cache_written_one_off_shows_in_decode(name: str, prepared, monkeypatch) -> None:
    """A single token written a slot too far: prefill is right, and the first block in decode is to blame."""
    from models.layers import attention

    sound, update = prepared(name), attention.update_cache
    monkeypatch.setattr(
        attention,
        "update_cache",
        lambda cache, new, positions: update(cache, new, positions + (len(positions) == 1 and int(positions[0]) > 0)),
    )
    found = sound.bisect()
    assert (found.first, found.phase) == ("decoder_0" if name == "t5-small" else "block_0", "decode")
    assert found.remark.endswith("only in decode, where the cache and the positions come in")


def test_nan_is_found_where_it_is_made(prepared, loading) -> None:
    """Nothing that is not finite compares as equal, and it is not blamed on those it would have spread to."""
    sound = prepared("smollm-135m")
    loading(perturbed("blocks.1.mlp.down_proj.weight", float("nan")))
    found = sound.bisect()
    assert found.first == "block_1"
    assert {row.stage for row in found.stages if row.bad} == {"block_1"}
    assert np.isinf(next(row for row in found.stages if row.bad).own)


def test_the_call_that_is_kept_is_the_stage_s_own(prepared, loading) -> None:
    """Run again on the inputs that were kept, the sound stage makes what is expected, the broken one what was got."""
    sound = prepared("smollm-135m")
    loading(perturbed("blocks.1.mlp.down_proj.weight"))
    sample = sound.side.keep(Place("decode", "block_1"), lambda *_: None)
    assert (sample.call.entry, sample.call.length, sample.stage) == ("decode", 1, "block_1")
    assert sample.inputs.keys() >= {"hidden", "mask", "kv_cache_k_1"}
    assert list(sample.expected) == list(sample.got) == ["hidden"]
    error = tensor_errors("hidden", sample.expected["hidden"], sample.got["hidden"]).rel_l2
    assert 1e-4 < error < 0.02
