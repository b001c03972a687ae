"""Whether a run goes through memory whole or by stages."""

from __future__ import annotations

from pathlib import Path

import pytest

from models import registry
from models.authoring.checkpoint import Checkpoint
from models.authoring.hf_config import HFConfig
from parity import memory
from parity.errors import RungError, UsageError
from parity.memory import Streaming, _left_in_groups, streaming
from parity.weights import resolve

ALL = ("original64", "original", "reauthored")
NAME = "smollm-135m"


def decided(monkeypatch: pytest.MonkeyPatch, asked: bool | None, there: int, name: str = NAME) -> Streaming | None:
    """The decision for a tiny model whose libraries take nothing, where so many bytes are available."""
    model, weights = registry.get(name), resolve(registry.get(name), "tiny")
    config = model.family.config_from(HFConfig.load(weights.folder))
    monkeypatch.setattr(memory, "available", lambda: there)
    monkeypatch.setattr(memory, "BASE", 0)
    monkeypatch.setattr(memory, "BESIDE", 0)
    return streaming(asked, model.family.name, weights.folder, config, ALL, weights.size, 0)


def test_a_model_that_fits_runs_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless it is asked for; one that does not fit is streamed, unless that is forbidden."""
    assert decided(monkeypatch, None, 1 << 40) is None
    forced = decided(monkeypatch, True, 1 << 40)
    assert forced is not None
    assert forced.reason == "as asked for"
    chosen = decided(monkeypatch, None, 2 * forced.expected)
    assert chosen is not None
    assert chosen.expected == forced.expected
    assert "for whole it would take" in str(chosen)
    assert decided(monkeypatch, False, forced.expected) is None


def test_the_largest_stage_must_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says how large it is and what there is."""
    forced = decided(monkeypatch, True, 1 << 40)
    assert forced is not None
    with pytest.raises(RungError, match=r"the largest stage alone has 0M parameters and takes 0\.0 GB"):
        decided(monkeypatch, True, forced.expected - 1)


def test_the_largest_stage_is_what_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight bytes for each of its values, in the oracle. Here it is a block."""
    forced = decided(monkeypatch, True, 1 << 40)
    assert forced is not None
    with Checkpoint(resolve(registry.get(NAME), "tiny").folder) as checkpoint:
        block = sum(tensor.numel() for name, tensor in checkpoint.items() if ".layers.0." in name)
    assert forced.expected == 8 * block


def test_blocks_are_quantized_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only tables are cut; a block larger than their pieces counts as it is."""
    model, weights = registry.get(NAME), resolve(registry.get(NAME), "tiny")
    size = memory._weigh(model.family.name, weights.folder, lambda *_: None)
    with Checkpoint(weights.folder) as checkpoint:
        counts = {name: tensor.numel() for name, tensor in checkpoint.items()}
    block = sum(count for name, count in counts.items() if ".layers.0." in name)
    table = counts["model.embed_tokens.weight"]
    assert (size.largest, size.piece) == (max(block, table), max(block, table))
    monkeypatch.setattr(memory, "MOST", 1)
    assert memory._weigh(model.family.name, weights.folder, lambda *_: None).piece == block


def test_a_recipe_that_nobody_has_measured_takes_as_much_as_any() -> None:
    """One from a file may be of any kind."""
    size = memory.Size(10**9)
    mine, known, small = (memory._whole(size, ("float", rung), 0) for rung in ("mine", "weight_only_int8", "fp16"))
    assert mine == known > small


def test_an_encoder_and_a_decoder_run_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking for anything else is wrong use."""
    assert decided(monkeypatch, None, 1000, "t5-small") is None
    with pytest.raises(UsageError, match="leave --streamed out"):
        decided(monkeypatch, True, 1000, "t5-small")


def test_there_is_memory_available() -> None:
    """On any machine that runs this."""
    assert memory.available() > 100_000_000


@pytest.mark.parametrize(
    ("line", "files", "left"),
    [
        ("0::/a/b", {"a/memory.max": "1000", "a/memory.current": "300", "a/b/memory.max": "max"}, [700]),
        (
            "0::/a",
            {"a/memory.max": "1000", "a/memory.current": "900", "a/memory.stat": "anon 1\ninactive_file 400\n"},
            [500],
        ),
        (
            "4:memory:/a",
            {"memory/a/memory.limit_in_bytes": "50", "memory/a/memory.usage_in_bytes": "90"},
            [0],
        ),
        ("3:cpuset:/a", {"cpuset/a/memory.max": "10"}, []),
    ],
)
def test_limits_of_a_group_count(tmp_path: Path, line: str, files: dict[str, str], left: list[int]) -> None:
    """Its own and those of the groups it is in; files that are cached can be had back."""
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    own = tmp_path / "own"
    own.write_text(line + "\n")
    assert _left_in_groups(tmp_path, own) == left
