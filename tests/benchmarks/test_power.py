"""Mistakes are put in and taken out again, bit for bit; the page says what the results say."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import power_page
import pytest
import torch
from power import PLACES, Edited, Place, Spot, injected, smallest_caught, wrong

from models import registry
from parity.weights import resolve


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    found = registry.get("smollm2-135m")
    return found.family.load(resolve(found, "tiny").folder)


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.name)
def test_an_error_goes_into_its_place_alone_and_is_undone_bit_for_bit(model: torch.nn.Module, place: Place) -> None:
    def answer() -> torch.Tensor:
        with torch.inference_mode():
            return model(torch.tensor([[5, 7, 11]]), torch.arange(3), model.empty_cache(16))["logits"].clone()

    state = {name: value.clone() for name, value in model.state_dict(keep_vars=True).items()}
    before = answer()
    with injected(model, place, 1e-3):
        assert not torch.equal(answer(), before)
        changed = [name for name, value in model.state_dict().items() if not torch.equal(value, state[name])]
        wanted = [f"{place.module.format(1)}.{place.tensor}"] if place.tensor == "weight" else []
        assert changed == wanted  # the other half of a tied table is as it was
    assert torch.equal(answer(), before)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert model.head.projection.weight is model.embed.tokens.weight


def test_every_number_is_wrong_by_as_much() -> None:
    values = np.linspace(-3, 5, 1000)
    ratio = wrong(values, 1e-3, "a place") / values - 1
    assert np.allclose(np.abs(ratio), 1e-3)
    assert 400 < (ratio > 0).sum() < 600
    assert np.array_equal(wrong(values, 1e-3, "a place"), wrong(values, 1e-3, "a place"))
    assert np.allclose(wrong(values, 1e-3), values * 1.001)
    assert np.array_equal(wrong(values, 0.0, "a place"), values)


def test_a_file_is_put_back_bit_for_bit(tmp_path: Path) -> None:
    class OnePlace(Edited):
        def spots(self, _place: Place, layer: int) -> list:
            view = np.frombuffer(source.read_bytes(), np.float32)
            return [Spot(4 * layer, view[layer : layer + 3].copy())]

    source = tmp_path / "source"
    source.write_bytes(np.arange(1, 9, dtype=np.float32).tobytes())
    edited = OnePlace(source, (), np.zeros(1, np.float32), tmp_path / "copy")
    with edited.injected(PLACES[0], 2, 0.5):
        inside = np.fromfile(edited.path, np.float32)
        assert np.array_equal(inside[[0, 1, 5, 6, 7]], [1, 2, 6, 7, 8])
        assert all(each in (0.5 * was, 1.5 * was) for each, was in zip(inside[2:5], (3, 4, 5), strict=True))
    assert edited.path.read_bytes() == source.read_bytes()


@pytest.mark.parametrize("guess", [-9, -5, -4, -1])
@pytest.mark.parametrize(("threshold", "found"), [(-5, -5), (-9, -9), (-12, -9), (-1, -1), (0, None)])
def test_the_search_ends_at_the_threshold(guess: int, threshold: int, found: int | None) -> None:
    asked = []

    def caught(exponent: int) -> bool:
        asked.append(exponent)
        return exponent >= threshold

    assert smallest_caught(caught, guess, -9, -1) == found
    assert len(asked) == len(set(asked))


def line(question: str, place: str, exponent: int | None, verdict: str) -> dict[str, object]:
    return {
        "weights": "tiny", "question": question, "place": place, "exponent": exponent, "verdict": verdict,
        "floor_ratio": 0.5, "worst_position_ratio": 1.25, "seconds": 2.0,
    }  # fmt: skip


HEADER = {
    "environment": {
        "system": "Linux", "machine": "x86_64", "threads": 2, "python": "3.11.7", "packages": {"torch": "2.13.0"}
    },
}  # fmt: skip
LINES = [
    line("port", "nothing", None, "PASS"),
    line("port", "head", -13, "FAIL"),
    line("port", "head", -14, "PASS"),
    line("rounding", "head", -6, "FAIL"),  # below one that passes: not the smallest that is caught
    line("rounding", "head", -5, "PASS"),
    line("rounding", "head", -4, "FAIL"),
    line("dynamic_int8", "head", -1, "PASS"),
    {
        "width": "a-model", "parameters": 135e6, "hidden": 576, "seconds": 61,
        "rungs": {
            name: {"floor_ratio": ratio, "worst_position_ratio": 2 * ratio, "draws": 4, "verdict": "PASS"}
            for name, ratio in (("reauthored64", 0.25), ("float", 0.75))
        },
    },
]  # fmt: skip


def test_the_page_says_the_smallest_that_is_caught() -> None:
    text = power_page.page(HEADER, LINES)
    assert "| head | 1e-13 | 1e-4 | — | > 1e-1 | — | — |" in text
    assert "| 0.500 / 1.25 |" in text
    assert "| a-model | 135M | 576 | 0.250 / 0.500 | 0.750 / 1.50 | 4 | PASS | 61 |" in text


def test_the_drawing_has_a_dot_for_each() -> None:
    root = ET.fromstring(power_page.drawing(LINES))
    words = [title.text for title in root.iter("{http://www.w3.org/2000/svg}title")][1:]
    assert words == ["head, exact port: 1e-13", "head, float file: 1e-4"]
