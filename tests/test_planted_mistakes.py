"""Porting mistakes, planted one at a time in a copy of the sources: each makes the check fail and name the edge.

They are the mistakes that public ports have made, or that a config invites.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Mistake:
    """``sound`` stands once in ``file``; ``broken`` is what a careless port would have there.

    ``output`` is where it shows first: an encoder that is off takes the logits with it, the other way round never.
    """

    what: str
    preset: str
    file: str
    sound: str
    broken: str
    output: str = "logits"


ATTENTION, DECODER, MASK, ROPE = (
    f"models/{file}.py" for file in ("layers/attention", "authoring/decoder", "layers/mask", "layers/rope")
)
GEMMA, PHI, OPENELM, T5, MOONSHINE, PALIGEMMA, QWEN_VL = (
    f"models/{file}.py" for file in ("gemma", "phi", "openelm", "t5", "moonshine", "paligemma", "qwen_vl")
)
AUDIO = "models/layers/audio.py"
BIAS, ENCODER_DECODER = "models/layers/relative_bias.py", "models/authoring/encoder_decoder.py"
SIGLIP, WINDOWED, VISION, VISION_LANGUAGE, SESSION = (
    f"models/{file}.py"
    for file in (
        "authoring/siglip",
        "authoring/windowed_vision",
        "layers/vision",
        "authoring/vision_language",
        "authoring/session",
    )
)
READER = "models/authoring/hf_config.py"

MISTAKES = (
    Mistake("rope sign swapped", "amd-llama-135m", ROPE, "first * cos - second * sin", "first * cos + second * sin"),
    Mistake(
        "llama3 scaling dropped",
        "llama-3.2-1b",
        ROPE,
        "return _llama3(frequencies, config.scaling)",
        "return frequencies",
    ),
    Mistake("gemma gain without its one", "gemma-2b", GEMMA, "gain_offset=1.0", "gain_offset=0.0"),
    Mistake("gemma embedding not scaled", "gemma-7b", GEMMA, "embedding_scale=width**0.5", "embedding_scale=1.0"),
    Mistake("gemma exact gelu", "gemma-2b", GEMMA, 'activation="gelu_tanh"', 'activation="gelu"'),
    Mistake("gemma2 layer kinds swapped", "gemma-2-2b", GEMMA, "layer % 2 == 0", "layer % 2 == 1"),
    Mistake(
        "gemma2 window off by one",
        "gemma-2-2b",
        MASK,
        "slots[None, :] > positions[:, None] - window",
        "slots[None, :] >= positions[:, None] - window",
    ),
    Mistake(
        "gemma2 attention softcap dropped",
        "gemma-2-2b",
        ATTENTION,
        "        if softcap is not None:",
        "        if False:",
    ),
    Mistake(
        "gemma2 softcap after the mask",
        "gemma-2-2b",
        ATTENTION,
        "scores = soft_cap(scores, softcap)\n        scores = scores if mask is None else scores + mask",
        "scores = soft_cap(scores + mask, softcap)",
    ),
    Mistake(
        "gemma2 final softcap dropped",
        "gemma-2-2b",
        DECODER,
        "return logits if self.softcap is None else soft_cap(logits, self.softcap)",
        "return logits",
    ),
    Mistake(
        "gemma2 scale from head_dim",
        "gemma-2-2b",
        GEMMA,
        'scale = source.number("query_pre_attn_scalar", 256.0) ** -0.5',
        'scale = source.number("query_pre_attn_scalar", 256.0) * 0 + head_dim**-0.5',
    ),
    Mistake(
        "gemma2 norm before the sub-block instead of after",
        "gemma-2-2b",
        GEMMA,
        '"post_attention_layernorm": "post_attention_norm",\n            "pre_feedforward_layernorm": "mlp_norm",',
        '"post_attention_layernorm": "mlp_norm",\n            "pre_feedforward_layernorm": "post_attention_norm",',
    ),
    Mistake(
        "phi2 block sequential",
        "phi-2",
        DECODER,
        "self.post_mlp_norm(self.mlp(normed))",
        "self.post_mlp_norm(self.mlp(self.attention_norm(x + attended)))",
    ),
    Mistake("phi2 exact gelu", "phi-2", READER, '"gelu_new": "gelu_tanh"', '"gelu_new": "gelu"'),
    Mistake(
        "phi2 frequencies of the whole head",
        "phi-2",
        ROPE,
        'dtype=torch.float64, device="cpu") / config.rotary_dim',
        'dtype=torch.float64, device="cpu") / (config.rotary_dim * 2.5)',
    ),
    Mistake(
        "phi3 attention factor dropped",
        "phi-3.5-mini",
        ROPE,
        "self.attention_factor = config.scaling.attention_factor",
        "self.attention_factor = 1.0",
    ),
    Mistake(
        "phi3 short factors beyond the boundary",
        "phi-3.5-mini",
        ROPE,
        "self.boundary is not None and cache_length > self.boundary",
        "False",
    ),
    Mistake(
        "phi3 gate and up rows swapped",
        "phi-3.5-mini",
        PHI,
        '("blocks.{}.mlp.gate_proj.weight", "blocks.{}.mlp.up_proj.weight")',
        '("blocks.{}.mlp.up_proj.weight", "blocks.{}.mlp.gate_proj.weight")',
    ),
    Mistake(
        "phi3 key and value rows swapped",
        "phi-4-mini",
        PHI,
        'tuple(f"blocks.{{}}.attention.{part}_proj.weight" for part in "qkv")',
        'tuple(f"blocks.{{}}.attention.{part}_proj.weight" for part in "qvk")',
    ),
    Mistake(
        "phi4 untouched channels scaled",
        "phi-4-mini",
        ROPE,
        "torch.cat([*rotated, tail]",
        "torch.cat([*rotated, tail * 1.19]",
    ),
    Mistake(
        "openelm rotation before the norm of q",
        "openelm-270m",
        ATTENTION,
        "query = self._rotated(self.q_norm(self._heads(self.q_proj(x))), cos, sin)",
        "query = self.q_norm(self._rotated(self._heads(self.q_proj(x)), cos, sin))",
    ),
    Mistake(
        "openelm halves of the feed-forward swapped",
        "openelm-1.1b",
        OPENELM,
        '(f"blocks.{i}.mlp.gate_proj.weight", f"blocks.{i}.mlp.up_proj.weight")',
        '(f"blocks.{i}.mlp.up_proj.weight", f"blocks.{i}.mlp.gate_proj.weight")',
    ),
    Mistake("openelm epsilon of Llama", "openelm-270m", OPENELM, "eps=1e-6", "eps=1e-5"),
    Mistake(
        "openelm heads shared in turn instead of block by block",
        "openelm-270m",
        ATTENTION,
        "key = key.transpose(1, 2).repeat_interleave(group, dim=1)",
        "key = key.transpose(1, 2).repeat(1, group, 1, 1)",
    ),
    Mistake("t5 scores divided by the root", "t5-small", T5, "scale=1.0", "scale=16**-0.5", "encoder"),
    Mistake("t5 head not scaled", "t5-small", T5, "head_scale=width**-0.5", "head_scale=1.0"),
    Mistake(
        "t5 decoder with the buckets of the encoder",
        "t5-small",
        T5,
        "bidirectional=bidirectional",
        "bidirectional=True",
    ),
    Mistake(
        "t5 keys right of the query like those left of it",
        "t5-small",
        BIAS,
        "if config.bidirectional else torch.zeros_like(relative)",
        "if False else torch.zeros_like(relative)",
        "encoder",
    ),
    Mistake(
        "t5 cross-attention after the norm of self-attention",
        "t5-small",
        ENCODER_DECODER,
        "self.cross_attention.across(self.cross_norm(x)",
        "self.cross_attention.across(self.attention_norm(x)",
    ),
    Mistake(
        "moonshine rotation of halves", "moonshine-tiny", MOONSHINE, "interleaved=True", "interleaved=False", "encoder"
    ),
    Mistake(
        "moonshine whole head rotated",
        "moonshine-base",
        MOONSHINE,
        "interleaved=True",
        "interleaved=True, rotary_dim=head_dim",
        "encoder",
    ),
    Mistake(
        "moonshine scores divided by the root of the padded head",
        "moonshine-base",
        MOONSHINE,
        "scale=head_dim**-0.5",
        "scale=(-(-head_dim // 8) * 8) ** -0.5",
        "encoder",
    ),
    Mistake("moonshine tanh gelu", "moonshine-tiny", READER, '"gelu": "gelu"', '"gelu": "gelu_tanh"', "encoder"),
    Mistake(
        "moonshine tanh gelu in the stem",
        "moonshine-tiny",
        AUDIO,
        "functional.gelu(convolution(x))",
        'functional.gelu(convolution(x), approximate="tanh")',
        "encoder",
    ),
    Mistake(
        "moonshine each channel normalized alone",
        "moonshine-tiny",
        AUDIO,
        "x.sum(2, keepdim=True).sum(1, keepdim=True)",
        "x.sum(2, keepdim=True) * x.shape[1]",
        "encoder",
    ),
    Mistake(
        "moonshine gate first",
        "moonshine-tiny",
        MOONSHINE,
        '(f"{target}.mlp.up_proj.{leaf}", f"{target}.mlp.gate_proj.{leaf}")',
        '(f"{target}.mlp.gate_proj.{leaf}", f"{target}.mlp.up_proj.{leaf}")',
    ),
    Mistake(
        "moonshine rotation across",
        "moonshine-tiny",
        ENCODER_DECODER,
        "self.cross_norm(x), None, None,",
        "self.cross_norm(x), cos, sin,",
    ),
    Mistake(
        "moonshine norms of the decoder in the encoder's order",
        "moonshine-base",
        MOONSHINE,
        '"post_attention_layernorm": "cross_norm",\n        "final_layernorm": "mlp_norm",',
        '"post_attention_layernorm": "mlp_norm",\n        "final_layernorm": "cross_norm",',
    ),
    Mistake(
        "paligemma causal prefix",
        "paligemma-3b-224",
        VISION_LANGUAGE,
        'prefix = self.config.bidirectional_prefix and name != "decode"',
        'prefix = self.config.bidirectional_prefix and name == "decode"',
    ),
    Mistake(
        "paligemma rows of pictures scaled like words",
        "paligemma-3b-224",
        VISION_LANGUAGE,
        "placed = encoded[:, rows.clamp(min=0)]",
        "placed = encoded[:, rows.clamp(min=0)] * encoded.shape[-1] ** 0.5",
    ),
    Mistake(
        "paligemma rows of pictures in the wrong order",
        "paligemma-2-3b-224",
        SESSION,
        "rows[places] = np.arange(len(places))",
        "rows[places] = np.arange(len(places))[::-1]",
    ),
    Mistake(
        "paligemma2 prefix within the window only",
        "paligemma-2-3b-224",
        MASK,
        "    if prefix is not None:",
        "    if prefix is not None and window is None:",
    ),
    Mistake(
        "siglip exact gelu",
        "paligemma-3b-224",
        PALIGEMMA,
        'activation=source.activation("hidden_act", "gelu_pytorch_tanh")',
        'activation="gelu"',
        "encoder",
    ),
    Mistake(
        "siglip positions off by one",
        "paligemma-3b-224",
        SIGLIP,
        "self.patches(pixels) + self.positions",
        "self.patches(pixels) + self.positions.roll(1, 0)",
        "encoder",
    ),
    Mistake(
        "siglip patches column by column",
        "paligemma-2-3b-224",
        VISION,
        "planes.permute(0, 2, 4, 1, 3, 5)",
        "planes.permute(0, 4, 2, 1, 3, 5)",
        "encoder",
    ),
    Mistake(
        "siglip colours innermost",
        "paligemma-3b-224",
        VISION,
        "planes.permute(0, 2, 4, 1, 3, 5)",
        "planes.permute(0, 2, 4, 3, 5, 1)",
        "encoder",
    ),
    Mistake(
        "siglip scores not scaled",
        "paligemma-2-3b-224",
        PALIGEMMA,
        "scale=head_dim**-0.5",
        "scale=1.0",
        "encoder",
    ),
    Mistake(
        "qwen-vl every block sees the whole picture",
        "qwen2.5-vl-3b",
        WINDOWED,
        "over_all if i in self.config.whole_blocks else in_windows",
        "over_all",
        "encoder",
    ),
    Mistake(
        "qwen-vl whole blocks counted from one",
        "qwen2.5-vl-3b",
        WINDOWED,
        "if i in self.config.whole_blocks",
        "if i + 1 in self.config.whole_blocks",
        "encoder",
    ),
    Mistake(
        "qwen-vl windows counted in patches",
        "qwen2.5-vl-3b",
        QWEN_VL,
        'source.positive("window_size") // merge // patch',
        'source.positive("window_size") // patch',
        "encoder",
    ),
    Mistake(
        "qwen-vl what fills windows up is seen",
        "qwen2.5-vl-3b",
        WINDOWED,
        "mask=None if bool(real.all())",
        "mask=None if True",
        "encoder",
    ),
    Mistake(
        "qwen-vl rows left in the order of windows",
        "qwen2.5-vl-3b",
        WINDOWED,
        "torch.argsort(torch.where(order < 0, order.numel(), order))",
        "torch.argsort(torch.where(order < 0, 1, 0), stable=True)",
        "encoder",
    ),
    Mistake(
        "qwen-vl patches numbered row by row",
        "qwen2.5-vl-3b",
        WINDOWED,
        "cells(*grid, config.merge)",
        "cells(*grid, 1)",
        "encoder",
    ),
    Mistake(
        "qwen-vl rows and columns of patches swapped",
        "qwen2.5-vl-3b",
        VISION,
        "torch.stack([order // columns, order % columns]",
        "torch.stack([order % columns, order // columns]",
        "encoder",
    ),
    Mistake(
        "qwen-vl merger tanh gelu", "qwen2.5-vl-3b", QWEN_VL, 'activation="gelu"', 'activation="gelu_tanh"', "encoder"
    ),
    Mistake(
        "qwen-vl key and value rows of the tower swapped",
        "qwen2.5-vl-3b",
        QWEN_VL,
        'for letter in "qkv"',
        'for letter in "qvk"',
        "encoder",
    ),
    Mistake(
        "qwen-vl plain positions",
        "qwen2.5-vl-3b",
        SESSION,
        "axial_positions(tokens, config.image_token, frames, until)",
        "axial_positions(tokens, config.image_token, [], until)",
    ),
    Mistake(
        "qwen-vl rows and columns of pictures swapped",
        "qwen2.5-vl-3b",
        SESSION,
        "np.indices((1, down, across)).reshape(3, -1)",
        "np.indices((1, down, across)).reshape(3, -1)[[0, 2, 1]]",
    ),
    Mistake(
        "qwen-vl text after a picture as far on as its rows",
        "qwen2.5-vl-3b",
        SESSION,
        "position += max(down, across)",
        "position += down * across",
    ),
    Mistake(
        "qwen-vl sections the other way round",
        "qwen2.5-vl-3b",
        ROPE,
        "zip(positions, torch.split(",
        "zip(positions.flip(0), torch.split(",
    ),
)


def run(tree: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run Python with the sources of ``tree`` in front of the installed ones."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=tree,
        env=environment,
    )


@pytest.fixture
def tree(tmp_path) -> Path:
    """A copy of the sources, which is what a fresh process imports there."""
    for package in ("models", "parity"):
        shutil.copytree(ROOT / package, tmp_path / "tree" / package, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "tree"


#: The recording, which spares the time of the original: what it computes, no mistake of ours can change.
GOLDEN = ("--golden", "--golden-dir", ROOT / "golden")


def check(
    tree: Path, preset: str, rung: str = "reauthored", against: Sequence[object] = GOLDEN
) -> tuple[int, dict[str, dict[str, Any]]]:
    """The exit code and a rung's edges, by output, of a check with the sources of ``tree``."""
    report = tree.parent / "report.json"
    done = run(tree, "-m", "parity", "check", preset, "--rung", rung, "--json", report, *against)
    assert "Traceback" not in done.stderr, done.stderr
    assert report.is_file(), done.stderr
    edges = [edge for edge in json.loads(report.read_text())["edges"] if edge["candidate"] == rung]
    return done.returncode, {edge["output"]: edge for edge in edges}


def plant(tree: Path, file: str, sound: str, broken: str) -> None:
    path = tree / file
    source = path.read_text()
    assert source.count(sound) == 1, "the line to break has changed; break it as it is now"
    path.write_text(source.replace(sound, broken))


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.what)
def test_a_planted_mistake_fails(tree, mistake) -> None:
    """Exit code 1, the right edge FAIL and its cause by how much; the encoder's FAILs when, and only when, it is off.

    Without the original nobody knows the stage, and the cause says how to find it.
    """
    plant(tree, mistake.file, mistake.sound, mistake.broken)
    code, edges = check(tree, mistake.preset)
    edge = edges[mistake.output]
    assert edge["verdict"] == "FAIL"
    assert code == 1
    assert "floor_ratio" in edge["cause"]
    assert edge["metrics"]["floor_ratio"] > 10 * edge["limits"]["floor_ratio"]
    if "encoder" in edges:
        assert edges["encoder"]["verdict"] == ("FAIL" if mistake.output == "encoder" else "PASS")
    failing = [edge for edge in edges.values() if edge["verdict"] == "FAIL"]
    assert [edge["first_divergent_stage"] for edge in failing] == [None] * len(failing)
    assert all(f'run "parity bisect {mistake.preset}" with the original' in edge["cause"] for edge in failing)


@pytest.mark.parametrize(
    ("what", "stages"),
    [
        ("phi2 block sequential", {"logits": "block_0"}),
        ("gemma2 final softcap dropped", {"logits": "head"}),
        ("t5 scores divided by the root", {"encoder": "encoder_0", "logits": "encoder_0"}),
    ],
)
def test_a_check_names_the_stage(tree, what: str, stages: dict[str, str]) -> None:
    """With the original at hand, every failing edge says where it begins."""
    mistake = next(mistake for mistake in MISTAKES if mistake.what == what)
    plant(tree, mistake.file, mistake.sound, mistake.broken)
    code, edges = check(tree, mistake.preset, against=())
    assert code == 1
    assert {output: edge["first_divergent_stage"] for output, edge in edges.items()} == stages


FILE_MISTAKES = {
    "keys and values of a layer given in the wrong order": (
        "models/authoring/signatures.py",
        "        return self.entry(tensors)",
        (
            '        made = self.entry(tensors)\n        one, other = made["kv_cache_k_1"], made["kv_cache_v_1"]\n'
            '        return {**made, "kv_cache_k_1": other, "kv_cache_v_1": one}'
        ),
        "signatures",
        "every stage is right and the file is not",
    ),
    "cache always written at its beginning": (
        "parity/convert/lowerings.py",
        "[zero, start, zero, zero]",
        "[zero, zero, zero, zero]",
        "block_0",
        "every block is off",
    ),
}


@pytest.mark.parametrize("what", FILE_MISTAKES)
def test_a_mistake_in_the_conversion_is_found_in_the_file(tree, what: str) -> None:
    """Without the original: the re-authored model, which is right, is what a file is taken apart against."""
    *planted, stage, remark = FILE_MISTAKES[what]
    plant(tree, *planted)
    code, edges = check(tree, "amd-llama-135m", rung="float")
    assert code == 1
    assert edges["logits"]["first_divergent_stage"] == stage
    assert remark in edges["logits"]["cause"]


def test_a_reproduction_runs_in_a_process_of_its_own(tree, tmp_path) -> None:
    """It shows the mistake as long as it is there, and that it is gone once it is; the folder is written whole."""
    mistake = next(mistake for mistake in MISTAKES if mistake.what == "gemma gain without its one")
    plant(tree, mistake.file, mistake.sound, mistake.broken)
    folder, report, page = (tmp_path / name for name in ("found", "found.json", "found.html"))
    options = ("--rung", "reauthored", "--output", folder, "--json", report, "--html", page)
    done = run(tree, "-m", "parity", "bisect", mistake.preset, *options)
    assert done.returncode == 1, done.stderr
    (found,) = json.loads(report.read_text())["rungs"]
    assert found["first"] == "block_0"
    assert "first bad stage: block_0" in page.read_text()
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md", "expected.safetensors", "got.safetensors", "inputs.safetensors", "reproduction.json"
    ]  # fmt: skip
    again = run(tree, "-m", "parity", "bisect", mistake.preset, *options)
    assert (again.returncode, "exists" in again.stderr) == (2, True)
    replayed = run(tree, "-m", "parity", "bisect", "--replay", folder)
    assert replayed.returncode == 1, replayed.stderr
    plant(tree, mistake.file, mistake.broken, mistake.sound)
    replayed = run(tree, "-m", "parity", "bisect", "--replay", folder)
    assert replayed.returncode == 0, replayed.stderr


def test_unbroken_copy_passes(tree) -> None:
    """The copy itself changes nothing, and it is the copy that runs: exit code 0, the re-authored edge PASS."""
    found = run(tree, "-c", "import models, parity; print(models.__file__, parity.__file__)")
    assert found.stdout.split() == [str(tree / name / "__init__.py") for name in ("models", "parity")]
    code, edges = check(tree, "amd-llama-135m")
    assert code == 0
    assert [edge["verdict"] for edge in edges.values()] == ["PASS"]
