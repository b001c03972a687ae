"""Kaggle's ``.ckpt`` files: bit for bit the parameters of the published layout, and nothing else is read."""

from __future__ import annotations

import json
import os
import pickle
from argparse import Namespace
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from models import registry
from models.authoring.checkpoint import SINGLE, Checkpoint, weight_files
from models.authoring.hf_config import HFConfig
from models.authoring.weight_map import original_layout
from models.errors import CheckpointError

PRESETS = ["gemma-2b", "gemma-7b", "gemma-2-2b"]
DAMAGE = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


def published(name: str, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Random tensors under the published names of a tiny preset."""
    model = registry.get(name)
    config = model.family.config_from(HFConfig(model.preset.values(tiny=True), name))
    layout = original_layout(model.family.build(config, device="meta"), model.family.weight_map(config))
    generator = torch.Generator().manual_seed(7)
    return {name: torch.randn(tensor.shape, generator=generator).to(dtype) for name, tensor in layout.items()}


def kaggle(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors as gemma_pytorch names and fuses them, written without looking at the weight map."""
    fused = {}
    for name, tensor in tensors.items():
        if name == "model.embed_tokens.weight":
            fused["embedder.weight"] = tensor
        elif ".q_proj." in name:
            parts = [tensors[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            fused[name.replace("q_proj", "qkv_proj")] = torch.cat(parts)
        elif ".k_proj." not in name and ".v_proj." not in name:
            fused[name] = tensor
    return fused


def write_config(folder: Path, name: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(registry.get(name).preset.values(tiny=True)))


def write_kaggle(folder: Path, state: object, name: str = "gemma-2-2b") -> Path:
    """A Kaggle folder with the tiny configuration of the preset ``name``."""
    write_config(folder, name)
    torch.save({"model_state_dict": state}, folder / "model.ckpt")
    return folder


def parameters(name: str, folder: Path) -> dict[str, Tensor]:
    return dict(registry.get(name).family.load(folder).named_parameters())


def refused(folder: Path, name: str = "gemma-2-2b") -> str:
    """The one line that loading ends with."""
    with pytest.raises(CheckpointError) as caught:
        registry.get(name).family.load(folder)
    assert len(str(caught.value).splitlines()) == 1
    assert ";" in str(caught.value)
    return str(caught.value)


# -- what is read


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", PRESETS)
def test_same_bits_through_either_layout(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    """Every parameter of the re-authored model is bit-identical, whichever file it came from."""
    tensors = published(name, dtype)
    write_config(tmp_path / "hub", name)
    save_file(tensors, tmp_path / "hub" / SINGLE)
    expected = parameters(name, tmp_path / "hub")
    found = parameters(name, write_kaggle(tmp_path / "kaggle", kaggle(tensors), name))
    assert found.keys() == expected.keys()
    for parameter, value in expected.items():
        assert value.dtype == found[parameter].dtype == torch.float32
        assert torch.equal(value.view(torch.int32), found[parameter].view(torch.int32)), parameter


def test_fused_rows_are_q_then_k_then_v(tmp_path: Path) -> None:
    """All query rows, then all key rows, then all value rows: not interleaved by head."""
    state = kaggle(published("gemma-2-2b"))
    rows = state["model.layers.1.self_attn.qkv_proj.weight"]
    rows.copy_(torch.arange(rows.shape[0], dtype=torch.float32)[:, None].expand_as(rows))
    loaded = parameters("gemma-2-2b", write_kaggle(tmp_path, state))
    q, k, v = (loaded[f"blocks.1.attention.{part}_proj.weight"][:, 0].tolist() for part in "qkv")
    assert len(q) > len(k) == len(v) > 16  # several heads of each
    assert q + k + v == list(range(rows.shape[0]))


@pytest.mark.parametrize("prefix", ["", "model.", "model.layers.2.self_attn."])
@pytest.mark.parametrize("buffer", ["freqs_cis", "local_freqs_cis", "global_freqs_cis"])
def test_frequency_buffers_are_ignored(tmp_path: Path, prefix: str, buffer: str) -> None:
    """Rotary tables, complex numbers that the restricted reader can read, are dropped wherever they lie."""
    state = kaggle(published("gemma-2b"))
    state[prefix + buffer] = torch.polar(torch.ones(4, 2), torch.ones(4, 2))
    assert parameters("gemma-2b", write_kaggle(tmp_path, state, "gemma-2b"))


def test_a_repeated_table_must_be_equal(tmp_path: Path) -> None:
    """A stored head that repeats the table is accepted; one that differs contradicts the configuration."""
    state = kaggle(published("gemma-2b"))
    state["lm_head.weight"] = state["embedder.weight"].clone()
    assert parameters("gemma-2b", write_kaggle(tmp_path, state, "gemma-2b"))
    state["lm_head.weight"][0, 0] += 1
    assert "lm_head.weight differs from embedder.weight" in refused(write_kaggle(tmp_path, state), "gemma-2b")


def test_the_mapping(tmp_path: Path) -> None:
    """The checkpoint lists and reads the file's tensors as stored; parameters come without their gradients."""
    weights = OrderedDict(a=torch.ones(2, 3, dtype=torch.bfloat16), b=torch.nn.Parameter(torch.zeros(1)))
    write_kaggle(tmp_path, weights)
    with Checkpoint(tmp_path) as checkpoint:
        assert list(checkpoint) == ["a", "b"]
        assert checkpoint["a"].dtype == torch.bfloat16
        assert not checkpoint["b"].requires_grad
        with pytest.raises(KeyError):
            checkpoint["c"]
    assert weight_files(tmp_path) == [tmp_path / "model.ckpt"]


def test_tensors_are_mapped_not_read(tmp_path: Path) -> None:
    """A tensor is a piece of the file, which the system brings in where it is touched."""
    write_kaggle(tmp_path, {"a": torch.ones(2, 3)})
    with Checkpoint(tmp_path) as checkpoint:
        address = checkpoint["a"].data_ptr()
        maps = Path("/proc/self/maps").read_text().splitlines()
        (line,) = (line for line in maps if line.endswith(f"{tmp_path}/model.ckpt"))
    first, last = (int(number, 16) for number in line.split()[0].split("-"))
    assert first <= address < last


def test_safetensors_come_first(tmp_path: Path) -> None:
    """A folder with both is read from its safetensors."""
    save_file({"a": torch.ones(1)}, tmp_path / SINGLE)
    (tmp_path / "model.ckpt").write_bytes(b"never opened")
    assert weight_files(tmp_path) == [tmp_path / SINGLE]


def test_two_state_dicts(tmp_path: Path) -> None:
    """Which of two files is the model's is not guessed."""
    for name in ("a.ckpt", "b.ckpt"):
        torch.save({"model_state_dict": {"a": torch.ones(1)}}, tmp_path / name)
    with pytest.raises(CheckpointError, match=r"2 \.ckpt files; leave only the model's"):
        weight_files(tmp_path)


# -- what is refused


def test_quantized_variant_is_refused_by_name(tmp_path: Path) -> None:
    """An int8 variant is told from the original by its scalers, and the message names one."""
    state = kaggle(published("gemma-2b"))
    state["embedder.weight"] = state["embedder.weight"].to(torch.int8)
    state["embedder.weight_scaler"] = torch.ones(len(state["embedder.weight"]))
    message = refused(write_kaggle(tmp_path, state, "gemma-2b"), "gemma-2b")
    assert message.startswith("embedder.weight_scaler is of an int8 checkpoint")


def test_missing_tensor(tmp_path: Path) -> None:
    """A tensor that is not there is named."""
    for name in ("embedder.weight", "model.layers.2.self_attn.qkv_proj.weight", "model.norm.weight"):
        state = kaggle(published("gemma-2-2b"))
        del state[name]
        with pytest.raises(CheckpointError, match=f"the checkpoint has no tensor {name}"):
            registry.get("gemma-2-2b").family.load(write_kaggle(tmp_path, state))


@pytest.mark.parametrize("extra", ["model.layers.3.mlp.up_proj.weight", "model.layers.0.self_attn.q_proj.weight"])
def test_extra_tensor(tmp_path: Path, extra: str) -> None:
    """A tensor without a place is named: a layer too many, or a projection stored twice."""
    state = kaggle(published("gemma-2-2b")) | {extra: torch.ones(2, 2)}
    assert f"{extra} is in the checkpoint but has no place" in refused(write_kaggle(tmp_path, state))


def test_wrong_shape(tmp_path: Path) -> None:
    """A fused tensor of other heads than the configuration's is named with both shapes."""
    state = kaggle(published("gemma-2-2b"))
    name = "model.layers.0.self_attn.qkv_proj.weight"
    rows, width = state[name].shape
    state[name] = state[name][:-16].clone()
    message = refused(write_kaggle(tmp_path, state))
    assert f"{name} has shape [{rows - 16}, {width}] where the configuration asks for [{rows}, {width}]" in message


def test_not_finite(tmp_path: Path) -> None:
    """NaN in a mapped tensor is found like in any other."""
    state = kaggle(published("gemma-2-2b"))
    state["model.norm.weight"][3] = float("nan")
    assert "model.norm.weight holds NaN" in refused(write_kaggle(tmp_path, state))


class Runs:
    """A pickle that runs a command when an ordinary reader opens it."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.witness}",)


@pytest.mark.parametrize("form", ["zip", "older", "bare"])
def test_code_never_runs(tmp_path: Path, form: str) -> None:
    """A file that would run code is refused unread, in whatever form it comes; an ordinary reader would run it."""
    witness, path = tmp_path / "ran", tmp_path / "model.ckpt"
    write_config(tmp_path, "gemma-2-2b")
    content = {"model_state_dict": {"a": Runs(witness)}}
    if form == "bare":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    message = refused(tmp_path)
    assert not witness.exists()
    if form == "zip":
        assert "would run code when read (posix.system); do not trust it" in message
    else:
        assert "not PyTorch's zip format" in message
    torch.load(path, weights_only=False) if form != "bare" else pickle.loads(path.read_bytes())
    assert witness.exists()


def test_environment_cannot_lift_the_restriction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's own switch for reading everything does not apply here."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    witness = tmp_path / "ran"
    assert "would run code" in refused(write_kaggle(tmp_path, {"a": Runs(witness)}))
    assert not witness.exists()


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"state_dict": {"a": torch.ones(1)}},
        {"a": torch.ones(1)},
        {"model_state_dict": {}},
        {"model_state_dict": [torch.ones(1)]},
        [1, 2],
        torch.ones(2),
        "text",
    ],
    ids=["empty", "other-key", "bare", "no-tensors", "list", "numbers", "tensor", "text"],
)
def test_no_state_dict(tmp_path: Path, content: object) -> None:
    """What PyTorch can read and is no model's state is refused."""
    write_config(tmp_path, "gemma-2-2b")
    torch.save(content, tmp_path / "model.ckpt")
    assert "holds no model_state_dict" in refused(tmp_path)


@pytest.mark.parametrize(
    "value", [3, "text", {"b": torch.ones(1)}, torch.eye(2).to_sparse(), torch.ones(1, device="meta")], ids=str
)
def test_entry_that_is_no_tensor(tmp_path: Path, value: object) -> None:
    """A state dict holds dense tensors and nothing else."""
    assert "a is not a dense tensor" in refused(write_kaggle(tmp_path, {"a": value}))


def test_other_classes(tmp_path: Path) -> None:
    """A class that is not PyTorch's own is code too, harmless or not."""
    assert "(argparse.Namespace)" in refused(write_kaggle(tmp_path, Namespace()))


def whole(tmp_path: Path) -> bytes:
    torch.save({"model_state_dict": {"a": torch.arange(6.0).reshape(2, 3)}}, tmp_path / "model.ckpt")
    return (tmp_path / "model.ckpt").read_bytes()


@DAMAGE
@given(data=st.data())
def test_truncated_anywhere(tmp_path: Path, data: st.DataObject) -> None:
    """Whatever the length, a file that is not whole is refused."""
    content = whole(tmp_path)
    length = data.draw(st.integers(0, len(content) - 1))
    (tmp_path / "model.ckpt").write_bytes(content[:length])
    with pytest.raises(CheckpointError, match="truncated or not PyTorch's zip format"):
        Checkpoint(tmp_path)


@DAMAGE
@given(data=st.data())
def test_damaged_anywhere(tmp_path: Path, data: st.DataObject) -> None:
    """A byte changed: refused in one line, or read as what the file now says; never another kind of failure."""
    content = bytearray(whole(tmp_path))
    content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "model.ckpt").write_bytes(content)
    message = ""
    try:
        with Checkpoint(tmp_path) as checkpoint:
            assert all(checkpoint[name].dtype for name in checkpoint)
    except CheckpointError as error:
        message = str(error)
    assert "\n" not in message


@pytest.mark.parametrize("content", [b"", b"\x80\x04N.", b"PK\x03\x04 no zip", b"text"])
def test_garbage(tmp_path: Path, content: bytes) -> None:
    """Bytes that are no checkpoint at all."""
    write_config(tmp_path, "gemma-2-2b")
    (tmp_path / "model.ckpt").write_bytes(content)
    assert "model.ckpt is truncated or not PyTorch's zip format" in refused(tmp_path)


def test_another_familys_state_dict(tmp_path: Path) -> None:
    """A family without a Kaggle layout holds the names against its published ones."""
    write_config(tmp_path, "amd-llama-135m")
    torch.save({"model_state_dict": kaggle(published("gemma-2b"))}, tmp_path / "model.ckpt")
    assert "the checkpoint has no tensor model.embed_tokens.weight" in refused(tmp_path, "amd-llama-135m")
