"""The exported file: the contract's names and shapes, and the same numbers with and without fused kernels."""

from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from models import registry
from models.authoring.hf_config import HFConfig
from parity import isolated
from parity.convert.export import to_file
from parity.convert.float_file import Export, convert, default_cache_length, file_name
from parity.errors import UsageError
from parity.inputs import TokenizedPrompt
from parity.runners.litert import LiteRT
from parity.weights import resolve

TOKENS = [1, 60, 70, 80, 90, 100, 110, 120, 130, 140, 150]
PROMPT = TokenizedPrompt("prompt", tuple(TOKENS), ())
MODEL = registry.get("amd-llama-135m")
CONFIG = MODEL.family.config_from(HFConfig(MODEL.preset.values(tiny=True), MODEL.name))


def _convert_unfused(folder: Path, export: Export, path: Path, progress: isolated.Progress) -> None:
    """The plain conversion with every composite switched off."""
    from models.authoring import family
    from parity.convert import float_file

    build = family.Family.build
    family.Family.build = lambda self, config, *, fused, device: build(self, config, fused=False, device=device)  # noqa: ARG005
    float_file._convert("llama", folder, export, path, progress)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same model converted with and without composites."""
    folder = tmp_path_factory.mktemp("plain")
    export = Export(prefill_lengths=(8,), cache_length=32)
    weights = resolve(registry.get("amd-llama-135m"), "tiny").folder
    convert("llama", weights, export, folder / "fused.tflite")
    isolated.run("converting", partial(_convert_unfused, weights, export, folder / "unfused.tflite"))
    return folder / "fused.tflite", folder / "unfused.tflite"


def _operators(path: Path) -> set[str]:
    from ai_edge_litert.interpreter import Interpreter

    return {op["op_name"] for op in Interpreter(str(path))._get_ops_details()}


def _logits(path: Path) -> np.ndarray:
    with LiteRT("float", (path,), CONFIG, 1).open() as session:
        prefill = session.prefill(PROMPT, 20).logits
        return np.concatenate([prefill, [session.decode(token) for token in (5, 6, 7)]])


def test_fused_kernels_give_the_same_numbers(files: tuple[Path, Path]) -> None:
    """Composites change the operators of the file, and its logits by no more than float32 rounding."""
    fused, unfused = files
    assert "STABLEHLO_COMPOSITE" in _operators(fused)
    assert "STABLEHLO_COMPOSITE" not in _operators(unfused)
    a, b = _logits(fused), _logits(unfused)
    # a few units of float32 roundoff over three layers; the smallest mistake would be a thousand times this
    assert np.linalg.norm(a - b) / np.linalg.norm(b) < 5e-6


def test_signatures_have_the_contract_s_names_and_shapes(files: tuple[Path, Path]) -> None:
    """tokens, input_pos, the cache by layer; logits at every position."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(files[0]))
    assert set(interpreter.get_signature_list()) == {"prefill_8", "decode"}
    caches = {f"kv_cache_{part}_{layer}" for part in "kv" for layer in range(3)}
    for name, length in (("prefill_8", 8), ("decode", 1)):
        runner = interpreter.get_signature_runner(name)
        inputs, outputs = runner.get_input_details(), runner.get_output_details()
        assert set(inputs) == {"tokens", "input_pos", *caches}
        assert set(outputs) == {"logits", *caches}
        assert list(inputs["tokens"]["shape"]) == [1, length]
        assert list(inputs["input_pos"]["shape"]) == [length]
        assert inputs["tokens"]["dtype"] == inputs["input_pos"]["dtype"] == np.int32
        assert list(outputs["logits"]["shape"]) == [1, length, 320]
        assert all(list(inputs[cache]["shape"]) == [1, 32, 6, 16] for cache in caches)


def test_prefill_in_pieces_equals_prefill_token_by_token(files: tuple[Path, Path]) -> None:
    """Chunks, padding and single decodes fill the same cache: later logits agree to rounding."""
    with LiteRT("float", (files[0],), CONFIG, 1).open() as session:
        pieces = session.prefill(PROMPT, 20).logits
        after_pieces = session.decode(5)
        session.prefill(replace(PROMPT, prompt=PROMPT.prompt[:1]), 20)
        singles = [session.decode(token) for token in TOKENS[1:]]
        after_singles = session.decode(5)
    np.testing.assert_allclose(pieces[1:], singles, rtol=0, atol=2e-5 * np.abs(pieces).max())
    np.testing.assert_allclose(after_pieces, after_singles, rtol=0, atol=2e-5 * np.abs(pieces).max())


@pytest.mark.parametrize(
    ("lengths", "cache"), [((), 32), ((0,), 32), ((8, 8), 32), ((64,), 32)], ids=["none", "zero", "twice", "too long"]
)
def test_impossible_exports_are_refused(lengths: tuple[int, ...], cache: int) -> None:
    """Before anything is converted."""
    with pytest.raises(UsageError, match="--prefill"):
        Export(prefill_lengths=lengths, cache_length=cache)


def test_file_names_say_what_they_hold() -> None:
    """Model, precision, cache length."""
    export = Export(prefill_lengths=(64,), cache_length=1280)
    assert file_name("smollm-135m", "q8", export) == "smollm-135m_q8_ekv1280.tflite"
    assert asdict(export)["prefill_logits"] is True
    assert default_cache_length(65) == 128
    assert default_cache_length(64) == 64
    assert callable(to_file)
