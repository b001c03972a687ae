"""Drawn weights: bit-identical everywhere, statistics of a trained model, bounded memory."""

import json
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from safetensors import safe_open

from models import registry
from models.authoring.checkpoint import Checkpoint
from parity import isolated
from parity.compare.metrics import entropy
from parity.golden import GoldenStore
from parity.inputs import read_prompts, tokenize
from parity.runners.driver import DrivenSession
from parity.runners.reauthored import TorchProgram
from parity.weights import resolve, write_checkpoint
from parity.weights.draw import OUTLIER_CHANNELS, Drawn, values, write_safetensors

MODELS = [pytest.param(model, id=model.name) for model in registry.models()]


@pytest.mark.parametrize("model", MODELS)
def test_tiny_checkpoint_has_the_committed_hash(model: registry.Model) -> None:
    """The bits are those that the recording was made from, on whatever machine that was."""
    store = GoldenStore.default()
    weights = resolve(model, "tiny")
    assert weights.sha256 == store.of(model.name, weights, model.prompts(tiny=True)).facts["identity"]["weights"]


class Run(NamedTuple):
    """Our logits ``[P, V]`` over all that is forced, and the summed squares ``[D]`` of what the head read."""

    logits: np.ndarray
    squares: torch.Tensor


@pytest.fixture(scope="module", params=MODELS)
def run(request: pytest.FixtureRequest) -> Run:
    """A tiny model's own, once for all that is asked of it."""
    model: registry.Model = request.param
    folder = resolve(model, "tiny").folder
    loaded = model.family.load(folder)
    inputs = tokenize(read_prompts(model.prompts(tiny=True)), folder, loaded.config)
    norm = next(module for name, module in loaded.named_modules() if name.endswith(("head.norm", "decoder.norm")))
    seen: list[torch.Tensor] = []
    norm.register_forward_pre_hook(lambda _, given: seen.append(given[0][0].square().sum(0)))
    session = DrivenSession(loaded.config, [TorchProgram(loaded, 96)])
    rows = []
    with torch.no_grad():
        for prompt in inputs.prompts:
            rows.append(session.prefill(prompt, 96).logits)
            rows += [session.decode(token)[None] for token in prompt.continuation]
    return Run(np.concatenate(rows), torch.stack(seen).sum(0))


def test_next_token_entropy_is_that_of_a_trained_model(run: Run) -> None:
    """Averaged over the default prompts it lies between 1.5 and 3 nats."""
    assert 1.5 <= entropy(run.logits).mean() <= 3.0


def test_residual_stream_has_outlier_channels(run: Run) -> None:
    """Before the head a few channels are several times larger than the others, and only a few."""
    ratios = (run.squares / run.squares.median()).sqrt()
    assert 1 <= int((ratios > 3).sum()) <= OUTLIER_CHANNELS + 1


def test_every_tensor_is_off_its_initial_value() -> None:
    """Gains are not 1, biases not 0: a port that drops one cannot pass."""
    with Checkpoint(resolve(registry.get("qwen2.5-0.5b"), "tiny").folder) as checkpoint:
        for name, tensor in checkpoint.items():
            assert tensor.std() > 0.005, name
            if tensor.ndim == 1:
                assert not torch.isin(tensor, torch.tensor([0.0, 1.0])).any(), name


def test_values_do_not_depend_on_how_they_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks are a matter of memory, not of numbers."""
    for kind in ("reader", "writer"):
        drawn = Drawn("x", (64, 48), kind, 0.1, outlier_rows=(3,))
        monkeypatch.setattr("parity.weights.draw.CHUNK", 1 << 20)
        whole = np.concatenate(list(values(drawn, "seed")))
        monkeypatch.setattr("parity.weights.draw.CHUNK", 200)
        pieces = list(values(drawn, "seed"))
        assert len(pieces) > 1
        np.testing.assert_array_equal(whole, np.concatenate(pieces))


def test_bfloat16_is_rounded_as_torch_rounds(tmp_path: Path) -> None:
    """The integer rounding equals the library's, and the file is one that the library reads."""
    drawn = Drawn("x", (256, 64), "reader", 1.0)
    write_safetensors(tmp_path / "a.safetensors", [drawn], dtype="bfloat16", seed="s")
    exact = torch.from_numpy(np.concatenate(list(values(drawn, "s"))).reshape(256, 64))
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        assert torch.equal(file.get_tensor("x"), exact.to(torch.bfloat16))


def test_a_damaged_cache_is_drawn_again() -> None:
    """A flipped byte in the user's cache is noticed and mended, not used."""
    model = registry.get("amd-llama-135m")
    weights = resolve(model, "tiny")
    path = weights.folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert resolve(model, "tiny").sha256 == weights.sha256
    content[-1] ^= 1
    assert path.read_bytes() == bytes(content)


def test_synthetic_is_sharded_by_an_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of bounded size, named as on the hub, that load strictly through the weight map."""
    monkeypatch.setattr("parity.weights.SHARD_BYTES", 400_000)
    model = registry.get("amd-llama-135m")
    write_checkpoint(tmp_path, model, lambda _done, _total: None, tiny=True)
    names = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert len(names) > 2
    assert names[0] == f"model-00001-of-{len(names):05}.safetensors"
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    assert set(index.values()) == set(names)
    model.family.load(tmp_path)


def _draw_large(path: Path, progress: isolated.Progress) -> None:
    progress(0, 1)
    table = Drawn("model.embed_tokens.weight", (128256, 3072), "reader", 0.1)
    write_safetensors(path, [table], dtype="bfloat16", seed="llama-3.2-3b/synthetic")


def test_drawing_the_largest_tensor_of_a_3b_model_stays_small(tmp_path: Path) -> None:
    """Its 788 MB are never in memory together; the limit for a whole 3B checkpoint is 1 GB."""
    finished = isolated.run("drawing", partial(_draw_large, tmp_path / "large.safetensors"))
    assert (tmp_path / "large.safetensors").stat().st_size > 788_000_000
    assert finished.peak_rss_mb < 1000
