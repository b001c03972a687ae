"""The original of OpenELM: an independent reference, or the published code where a person trusts it."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models import registry
from models.authoring.hf_config import HFConfig
from models.openelm import read_layout
from parity.inputs import TokenizedPrompt
from parity.runners import openelm
from parity.runners.original import Original
from parity.weights import resolve

TOKENS = [1, 17, 200, 45, 45, 90, 3, 311, 64, 128, 255, 8]

#: What a repository could carry: the architecture over the published names, everything recomputed at every step.
PUBLISHED = """
from pathlib import Path
import torch
from torch import nn
from torch.nn import functional as F
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

Path({ran!r}).touch()

class OpenELMConfig(PretrainedConfig):
    model_type = "openelm"

class Attention(nn.Module):
    def __init__(self, c, i):
        super().__init__()
        self.d, self.q, self.k = c.head_dim, c.num_query_heads[i], c.num_kv_heads[i]
        self.qkv_proj = nn.Linear(c.model_dim, (self.q + 2 * self.k) * self.d, bias=False)
        self.q_norm, self.k_norm = nn.RMSNorm(self.d, 1e-6), nn.RMSNorm(self.d, 1e-6)
        self.out_proj = nn.Linear(self.q * self.d, c.model_dim, bias=False)

    def turn(self, x):
        inverse = 10000.0 ** (-torch.arange(0, self.d, 2).to(x.dtype) / self.d)
        angles = torch.arange(x.shape[2]).to(x.dtype)[:, None] * inverse
        a, b = x.chunk(2, -1)
        return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], -1)

    def forward(self, x):
        heads = self.qkv_proj(x).unflatten(-1, (-1, self.d)).transpose(1, 2)
        q, k, v = heads.split([self.q, self.k, self.k], 1)
        q, k = self.turn(self.q_norm(q)), self.turn(self.k_norm(k))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.out_proj(y.transpose(1, 2).flatten(2))

class FFN(nn.Module):
    def __init__(self, c, i):
        super().__init__()
        width = round(c.ffn_multipliers[i] * c.model_dim / c.ffn_dim_divisor) * c.ffn_dim_divisor
        self.proj_1 = nn.Linear(c.model_dim, 2 * width, bias=False)
        self.proj_2 = nn.Linear(width, c.model_dim, bias=False)

    def forward(self, x):
        a, b = self.proj_1(x).chunk(2, -1)
        return self.proj_2(F.silu(a) * b)

class Layer(nn.Module):
    def __init__(self, c, i):
        super().__init__()
        self.attn, self.ffn = Attention(c, i), FFN(c, i)
        self.attn_norm, self.ffn_norm = nn.RMSNorm(c.model_dim, 1e-6), nn.RMSNorm(c.model_dim, 1e-6)

    def forward(self, x):
        x = x + self.attn(self.attn_norm(x))
        return x + self.ffn(self.ffn_norm(x))

class OpenELMForCausalLM(PreTrainedModel):
    config_class = OpenELMConfig

    def __init__(self, c):
        super().__init__(c)
        self.transformer = nn.Module()
        self.transformer.token_embeddings = nn.Embedding(c.vocab_size, c.model_dim)
        self.transformer.layers = nn.ModuleList(Layer(c, i) for i in range(c.num_transformer_layers))
        self.transformer.norm = nn.RMSNorm(c.model_dim, 1e-6)
        self.post_init()

    def _init_weights(self, module):
        pass

    def forward(self, input_ids, past_key_values=None, use_cache=True):
        ids = input_ids if past_key_values is None else torch.cat([past_key_values, input_ids], 1)
        x = self.transformer.token_embeddings(ids)
        for layer in self.transformer.layers:
            x = layer(x)
        logits = self.transformer.norm(x) @ self.transformer.token_embeddings.weight.T
        return CausalLMOutputWithPast(logits=logits[:, -input_ids.shape[1] :], past_key_values=ids)
"""
#: As in the files that Apple published: the library calls this with keyword arguments that it does not take.
BROKEN = "    def __post_init__(self):\n        pass\n"


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The tiny checkpoint with its layout stored per layer, as it is published, and code beside it."""
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    model = registry.get("openelm-270m")
    made = tmp_path / "openelm"
    shutil.copytree(resolve(model, "tiny").folder, made)
    values = json.loads((made / "config.json").read_text())
    layout = read_layout(HFConfig(values, "tiny"), values["head_dim"])
    values["num_query_heads"] = [query for query, _, _ in layout]
    values["num_kv_heads"] = [shared for _, shared, _ in layout]
    values["ffn_multipliers"] = [hidden / values["model_dim"] for _, _, hidden in layout]
    names = {"AutoConfig": "OpenELMConfig", "AutoModelForCausalLM": "OpenELMForCausalLM"}
    values["auto_map"] = {auto: f"modeling_openelm.{name}" for auto, name in names.items()}
    (made / "config.json").write_text(json.dumps(values))
    (made / "modeling_openelm.py").write_text(PUBLISHED.format(ran=str(tmp_path / "ran")))
    return made


def broken(folder: Path) -> Path:
    """The same with a configuration that the library cannot make."""
    path = folder / "modeling_openelm.py"
    path.write_text(path.read_text().replace('    model_type = "openelm"\n', f'    model_type = "openelm"\n{BROKEN}'))
    return folder


def answer(original: Original) -> tuple[np.ndarray, str]:
    """Logits of all but three tokens in one piece and the rest one by one, and the session's note."""
    with original.open() as session:
        prefill = session.prefill(TokenizedPrompt("prompt", tuple(TOKENS[:-3]), ()), len(TOKENS)).logits
        decoded = [session.decode(token) for token in TOKENS[-3:]]
        return np.concatenate([prefill, np.stack(decoded)]), session.note


def test_the_reference_shares_no_code_with_the_port() -> None:
    """It imports nothing from ``models``, and nothing that it imports brings a block or the family in."""
    tree = ast.parse(Path(openelm.__file__).read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
    names = [
        name for node in imports for name in [getattr(node, "module", None), *(a.name for a in node.names)] if name
    ]
    assert "parity.trace" in names  # the look at the imports sees them
    assert not [name for name in names if name.split(".")[0] == "models"]
    loaded = "import sys, parity.runners.openelm; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True)
    ours = {name for name in done.stdout.split() if name.split(".")[0] == "models"}
    plain = {"models", "models.errors", "models.authoring", "models.authoring.config", "models.authoring.session"}
    assert ours <= plain  # descriptions and messages; nothing that computes


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_trusted_code_is_the_original(folder, tmp_path, precision) -> None:
    """It runs, in the precision asked for, and agrees with the reference; the note says which one it was."""
    expected, _ = answer(Original(folder, precision))
    found, note = answer(Original(folder, precision, remote_code=True))
    assert note == "the code published with the checkpoint"
    assert (tmp_path / "ran").exists()
    tolerance = 1e-5 if precision == "float32" else 1e-12
    assert np.abs(found - expected).max() < tolerance * np.abs(expected).max()


def test_code_that_does_not_run_gives_way_to_the_reference(folder) -> None:
    """With the library's own words for why."""
    expected, _ = answer(Original(folder))
    found, note = answer(Original(broken(folder), remote_code=True))
    assert np.array_equal(found, expected)
    assert note.startswith("an independent reference")
    assert "was tried and does not run here (TypeError: " in note


def check(folder: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    """The exit code and the report of a check of the re-authored model."""
    report = folder.parent / "report.json"
    command = ["check", "openelm", "--weights", str(folder), "--rung", "reauthored", "--json", str(report), *arguments]
    done = subprocess.run([sys.executable, "-m", "parity", *command], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, json.loads(report.read_text())


@pytest.mark.parametrize("trusted", [True, False])
def test_code_runs_only_when_trusted(folder, tmp_path, trusted) -> None:
    """Both ways the port passes; without the option the file beside the weights is never executed."""
    code, report = check(folder, *["--trust-remote-code"] * trusted)
    notes = {rung["artifact"].get("note", "")[:24] for rung in report["rungs"] if rung["name"].startswith("original")}
    assert code == 0
    assert (tmp_path / "ran").exists() == trusted
    assert notes == {"the code published with the checkpoint"[:24] if trusted else "an independent reference"}
