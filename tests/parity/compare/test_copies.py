"""A rung whose numbers are something else's, bit for bit, has not computed them; what may be equal is left alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from parity.compare.copies import Numbers, copied, denouncing
from parity.compare.limits import ROUNDING_LIMITS
from parity.compare.measuring import Measured
from parity.compare.verdict import Edge, Verdict, judge
from parity.trace import PromptTrace, Trace


def trace(dtype: type = np.float64, *, changed: bool = False, order: Sequence[str] = ("p", "q")) -> Trace:
    """Logits of two prompts in any precision, one of them by one unit in the last place of float32 off."""
    rng = np.random.default_rng(0)
    logits = {name: rng.standard_normal((5, 7)).astype(np.float32) for name in ("p", "q")}
    if changed:
        logits["q"][-1, -1] = np.nextafter(logits["q"][-1, -1], np.float32(9))
    return Trace({name: PromptTrace(logits[name][:3].astype(dtype), logits[name][3:].astype(dtype)) for name in order})


def test_digest_is_of_the_numbers() -> None:
    """The same whatever the precision they are held in and the order of prompts; another for one last bit."""
    assert trace().digest == trace(np.float32).digest == trace(order=("q", "p")).digest
    assert trace().digest != trace(changed=True).digest


def test_digest_is_of_where_they_are() -> None:
    """The same numbers at other positions, in another phase or under another prompt are other numbers."""
    prompt = trace().prompts["p"]
    rows = np.concatenate([prompt.prefill, prompt.decode])
    splits = [Trace({name: PromptTrace(rows[:cut], rows[cut:])}) for name in "ab" for cut in (1, 2)]
    assert len({split.digest for split in splits}) == 4
    assert Trace({"a": PromptTrace(rows[:0], rows)}).digest != Trace({"a": PromptTrace(rows, rows[:0])}).digest


@pytest.mark.parametrize("rung", ["reauthored", "float", "dynamic_int8", "fp16"])
def test_the_references_own_numbers(rung: str) -> None:
    """The oracle rounded to float32 is what no float32 computation gives of a model that rounding touches."""
    cause = copied(Numbers(rung, "same", "file"), "same", [], noisy=True)
    assert cause is not None
    assert "gave the reference's own numbers" in cause
    assert rung in cause


@pytest.mark.parametrize("rung", ["reauthored", "float", "dynamic_int8"])
def test_a_model_that_is_exact_may_be_equal_everywhere(rung: str) -> None:
    """Where the original has no noise, everything gives the same numbers."""
    assert copied(Numbers(rung, "same", "file"), "same", [Numbers("original", "same")], noisy=False) is None


@pytest.mark.parametrize("other", [Numbers("original", "same"), Numbers("reauthored", "same")])
@pytest.mark.parametrize("candidate", [Numbers("float", "same", "f"), Numbers("fp16", "same", "q", 16)])
def test_a_file_never_gives_the_numbers_of_pytorch(candidate: Numbers, other: Numbers) -> None:
    """Another runtime adds in another order."""
    cause = copied(candidate, "reference", [Numbers("else", "else"), other], noisy=True)
    assert cause is not None
    assert f"{candidate.rung} gave the very numbers of {other.rung}" in cause


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("other", [Numbers("float", "same", "f"), Numbers("other", "same", "o", 8)])
def test_rounded_weights_never_give_the_same_numbers(bits: int, other: Numbers) -> None:
    """A quantized rung that equals the float one ran the float file, whatever the file is called."""
    cause = copied(Numbers("quantized", "same", "q", bits), "reference", [other], noisy=True)
    assert cause is not None
    assert f"quantized gave the very numbers of {other.rung}" in cause


@pytest.mark.parametrize(
    ("candidate", "other"),
    [
        (Numbers("reauthored", "same"), Numbers("original", "same")),
        (Numbers("fp16", "same", "q", 16), Numbers("float", "same", "f")),
        (Numbers("dynamic_int4_block128", "same", "q", 4), Numbers("dynamic_int4_block32", "same", "q", 4)),
        (Numbers("float", "one", "f"), Numbers("original", "other")),
    ],
    ids=["both PyTorch", "16 bits lose nothing", "one file", "other numbers"],
)
def test_what_may_be_equal_is_left_alone(candidate: Numbers, other: Numbers) -> None:
    """The port in PyTorch, weights that fit float16, two recipes that come to one file."""
    assert copied(candidate, "reference", [other], noisy=True) is None


def test_a_rung_that_copied_is_an_error_however_good_its_figures() -> None:
    """All of its edges; figures and limits stay to be seen, and what was found before gives way."""
    figures = {"floor_ratio": 0.1, "worst_position_ratio": 0.1}
    edges = [
        judge("original64", "float", "rounding", Measured(figures | worse), ROUNDING_LIMITS)
        for worse in ({}, {"floor_ratio": 99})
    ]
    assert [edge.verdict for edge in edges] == [Verdict.PASS, Verdict.FAIL]
    assert denouncing(edges, None) == edges
    for edge, before in zip(denouncing(edges, "it copied"), edges, strict=True):
        assert edge == Edge(**{**vars(before), "verdict": Verdict.ERROR, "cause": "it copied"})
