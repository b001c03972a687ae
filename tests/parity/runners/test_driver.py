"""How a session goes through entry points: which calls, with exactly which tensors, whatever runs them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest

from models import registry
from models.authoring.hf_config import HFConfig
from models.authoring.session import EncoderCall, SessionInputs
from parity.errors import RungError
from parity.inputs import Inputs, TokenizedPrompt
from parity.runners import driver
from parity.runners.base import converse, hold, record
from parity.runners.driver import DrivenSession, Tensor
from parity.runners.litert import LiteRT, LiteRTProgram

MODEL = registry.get("smollm-135m")
CONFIG = MODEL.family.config_from(HFConfig(MODEL.preset.values(tiny=True), MODEL.name))
Shapes = Mapping[str, Sequence[int] | None]


class Tape:
    """A program that writes down every call; its logits are the positions, its cache counts the calls."""

    def __init__(self, shapes: Mapping[str, Shapes], lengths: Sequence[int] | None = (4, 8), slots: int = 32) -> None:
        self.cache_length = slots
        self.calls: list[tuple[str, dict[str, Tensor]]] = []
        self._shapes, self._lengths = shapes, lengths

    def empty_cache(self, rows: int) -> dict[str, Tensor]:
        return {"kv_cache_k_0": np.zeros(rows)}

    def prefill_lengths(self, entry: str) -> Sequence[int] | None:  # noqa: ARG002
        return self._lengths

    def shapes(self, entry: str, length: int) -> Shapes:  # noqa: ARG002
        return self._shapes[entry]

    def call(self, entry: str, length: int, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        self.calls.append((entry, tensors))
        if entry.startswith("encode"):
            return {"encoded": tensors["source"][..., None] * [1.0, 2.0], "cross_k_0": np.asarray([7.0])}
        rows, count = tensors["tokens"].shape
        # A second row's answers are a thousand off, so that it is seen whose they are.
        logits = np.broadcast_to(tensors["input_pos"][None, :, None], (rows, count, 3)).astype(float)
        logits = logits + 1000.0 * np.arange(rows)[:, None, None]
        assert count == length
        return {"logits": logits, "kv_cache_k_0": tensors["kv_cache_k_0"] + 1}


PLAIN: Shapes = dict.fromkeys(("tokens", "input_pos", "kv_cache_k_0"))
TEXT = {"prefill": PLAIN, "decode": PLAIN}


def prompt(count: int) -> TokenizedPrompt:
    return TokenizedPrompt("p", tuple(range(10, 10 + count)), ())


def session(monkeypatch: pytest.MonkeyPatch, tape: Tape, given: SessionInputs) -> DrivenSession:
    """A session whose host gives ``given``."""
    monkeypatch.setattr(driver, "session_inputs", lambda *_: given)
    return DrivenSession(CONFIG, [tape])


def test_a_prompt_is_cut_padded_and_followed_by_decodes(monkeypatch) -> None:
    """Real tokens in order at consecutive positions, zeros as padding, one logit for every real token."""
    tape = Tape(TEXT)
    running = session(monkeypatch, tape, SessionInputs())
    logits, encoded = running.prefill(prompt(9), 12)
    assert encoded is None
    assert logits[:, 0].tolist() == list(range(9))
    running.decode(99)
    given = [(entry, tensors["tokens"][0].tolist(), tensors["input_pos"].tolist()) for entry, tensors in tape.calls]
    assert given == [
        ("prefill", list(range(10, 18)), list(range(8))),
        ("decode", [18], [8]),
        ("decode", [99], [9]),
    ]


def test_the_cache_goes_round_and_a_new_prompt_starts_over(monkeypatch) -> None:
    """Each call takes what the one before it gave; the next prompt takes zeros again."""
    tape = Tape(TEXT)
    running = session(monkeypatch, tape, SessionInputs())
    for _ in range(2):
        running.prefill(prompt(9), 12)
        running.decode(1)
    assert [tensors["kv_cache_k_0"].item() for _, tensors in tape.calls] == [0, 1, 2, 0, 1, 2]


def test_rows_of_all_sources_are_one_after_the_other(monkeypatch) -> None:
    """Padding is cut off each encoder's output; the prompt is given all rows, padded to what it takes."""
    tape = Tape(
        {
            "encode_a": {"source": [1, 5]},
            "encode_b": {"source": [1, 3]},
            "prefill": {**PLAIN, "encoded": [1, 6, 2], "cross_k_0": None},
            "decode": PLAIN,
        }
    )
    calls = (
        EncoderCall("encode_a", {"source": np.asarray([[1.0, 2.0]])}, 2),
        EncoderCall("encode_b", {"source": np.asarray([[3.0, 4.0, 5.0]])}, 3),
    )
    running = session(monkeypatch, tape, SessionInputs(calls=calls))
    _, encoded = running.prefill(prompt(4), 12)
    assert encoded is not None
    assert encoded.tolist() == [[1, 2], [2, 4], [3, 6], [4, 8], [5, 10]]
    assert [tensors["source"].tolist() for _, tensors in tape.calls[:2]] == [[[1, 2, 0, 0, 0]], [[3, 4, 5]]]
    taken = tape.calls[2][1]
    assert taken["encoded"][0].tolist() == [*encoded.tolist(), [0, 0]]
    assert taken["cross_k_0"].tolist() == [7]


def test_without_a_prefill_tokens_go_one_at_a_time(monkeypatch) -> None:
    """An encoder-decoder's decoder starts with one token, and so does every prompt without a prefill."""
    tape = Tape(TEXT)
    session(monkeypatch, tape, SessionInputs(prefill=None)).prefill(prompt(3), 12)
    assert [entry for entry, _ in tape.calls] == ["decode"] * 3


def test_values_by_position_follow_the_tokens(monkeypatch) -> None:
    """A call is given those of its own positions, padding counted as positions beyond the session."""
    axes = np.arange(3 * 11).reshape(3, 11)
    shapes = {"prefill": {**PLAIN, "rope_pos": None, "scale": None}, "decode": {**PLAIN, "rope_pos": None}}
    tape = Tape(shapes, lengths=(8,))
    given = SessionInputs(per_position={"rope_pos": axes}, constant={"scale": np.asarray([2])})
    running = session(monkeypatch, tape, given)
    running.prefill(prompt(10), 11)
    running.decode(1)
    assert [tensors["rope_pos"].tolist() for _, tensors in tape.calls] == [
        axes[:, :8].tolist(),
        [[*row[8:], 0, 0, 0, 0, 0] for row in axes.tolist()],
        axes[:, 10:].tolist(),
    ]
    assert [tensors.get("scale") is not None for _, tensors in tape.calls] == [True, True, False]


def test_any_number_of_tokens_is_one_call(monkeypatch) -> None:
    """Where lengths are free there is nothing to cut and nothing to pad."""
    tape = Tape(TEXT, lengths=None)
    session(monkeypatch, tape, SessionInputs()).prefill(prompt(9), 12)
    assert [(entry, tensors["tokens"].shape) for entry, tensors in tape.calls] == [("prefill", (1, 9))]


def test_what_does_not_fit_is_an_error_that_names_it(monkeypatch) -> None:
    """A tensor larger than the file's, one that nothing gives, a position past the cache."""
    call = EncoderCall("encode", {"source": np.ones((1, 6))}, 6)
    tape = Tape({"encode": {"source": [1, 5]}, **TEXT})
    with pytest.raises(RungError, match=r"encode: source of shape \[1, 6\] does not fit the file's \[1, 5\]"):
        session(monkeypatch, tape, SessionInputs(calls=(call,))).prefill(prompt(1), 2)
    tape = Tape({"prefill": {**PLAIN, "mystery": None}, "decode": PLAIN})
    with pytest.raises(RungError, match="prefill takes mystery, which nothing gives it"):
        session(monkeypatch, tape, SessionInputs()).prefill(prompt(4), 8)
    running = session(monkeypatch, Tape(TEXT, slots=4), SessionInputs())
    running.prefill(prompt(4), 4)
    with pytest.raises(RungError, match="position 5 is past the cache of 4"):
        running.decode(1)


def given(tape: Tape) -> list[tuple[str, list[list[int]], int]]:
    """Every call: its entry point, the tokens of its rows, and where it begins."""
    return [(entry, tensors["tokens"].tolist(), int(tensors["input_pos"][0])) for entry, tensors in tape.calls]


@pytest.mark.parametrize("lengths", [(4, 8), None])
def test_a_prompt_goes_through_the_prefills_it_names(monkeypatch, lengths) -> None:
    """Only through those, even where there are others or any number of tokens could go at once; or token by token."""
    tape = Tape(TEXT, lengths=lengths)
    session(monkeypatch, tape, SessionInputs()).prefill(replace(prompt(6), through=(4,)), 12)
    assert given(tape) == [("prefill", [[10, 11, 12, 13]], 0), ("prefill", [[14, 15, 0, 0]], 4)]
    tape = Tape(TEXT, lengths=lengths)
    logits = session(monkeypatch, tape, SessionInputs()).prefill(replace(prompt(3), through=()), 12).logits
    assert given(tape) == [("decode", [[token]], at) for at, token in enumerate((10, 11, 12))]
    assert logits[:, 0].tolist() == [0, 1, 2]


def test_a_second_turn_goes_on_where_the_first_ended(monkeypatch) -> None:
    """Prompt, continuation, second turn in several tokens on the same cache, reply; answers in the order of phases."""
    tape = Tape(TEXT)
    asked = TokenizedPrompt("p", (1, 2, 3), (4, 5), turn=(6, 7, 8, 9, 10), reply=(11,), generates=False)
    trace = hold(converse(frozenset(), asked, 8, None), session(monkeypatch, tape, SessionInputs()))
    assert given(tape) == [
        ("prefill", [[1, 2, 3, 0]], 0),
        ("decode", [[4]], 3),
        ("decode", [[5]], 4),
        ("prefill", [[6, 7, 8, 9, 10, 0, 0, 0]], 5),
        ("decode", [[11]], 10),
    ]
    assert [tensors["kv_cache_k_0"].item() for _, tensors in tape.calls] == [0, 1, 2, 3, 4]
    assert trace.prefill[:, 0].tolist() == [0, 1, 2, 5, 6, 7, 8, 9]
    assert trace.decode[:, 0].tolist() == [3, 4, 10]
    assert len(trace.steps) == 0


@pytest.mark.parametrize("row", [0, 1])
def test_rows_of_a_batch_go_together_and_one_is_answered(monkeypatch, row) -> None:
    """The other row has its own tokens at every position, its own padding and cache; only ``row`` is compared."""
    tape = Tape(TEXT)
    asked = TokenizedPrompt("p", (1, 2, 3), (4, 5), beside=(21, 22, 23, 24, 25), row=row, generates=False)
    trace = hold(converse(frozenset(), asked, 8, None), session(monkeypatch, tape, SessionInputs()))
    ours, others = [[1, 2, 3, 0], [4], [5]], [[21, 22, 23, 0], [24], [25]]
    pairs = [list(pair) if row == 0 else list(pair)[::-1] for pair in zip(ours, others, strict=True)]
    assert [tokens for _, tokens, _ in given(tape)] == pairs
    assert tape.calls[0][1]["kv_cache_k_0"].shape == (2,)
    assert trace.prefill[:, 0].tolist() == [1000 * row + at for at in range(3)]
    assert trace.decode[:, 0].tolist() == [1000 * row + 3, 1000 * row + 4]


def test_an_exported_file_is_given_no_batch(tmp_path) -> None:
    """Of a set it is given the other prompts; a set of batches alone is an error, never an empty pass."""
    inputs = Inputs("batch", "batch", "0", "0", (replace(prompt(3), beside=(1, 2, 3)), replace(prompt(2), id="q")))
    assert [one.id for one in inputs.one_row.prompts] == ["q"]
    only = replace(inputs, prompts=inputs.prompts[:1])
    with pytest.raises(RungError, match="float takes one row and all prompts of batch are batches; leave the rung out"):
        record(LiteRT("float", (), CONFIG, 1), only, tmp_path, generate=8)
    with pytest.raises(RungError, match="an exported file takes one row, not 2"):
        LiteRTProgram.empty_cache(None, 2)


def test_a_cache_is_filled_to_its_last_slot_and_no_further(monkeypatch) -> None:
    """Padding that ends with the cache is taken, decode writes its slots; a turn that does not fit is refused."""
    tape = Tape(TEXT, slots=8)
    running = session(monkeypatch, tape, SessionInputs())
    running.prefill(prompt(7), 8)
    assert running.decode(1).tolist() == [7, 7, 7]
    assert given(tape) == [("prefill", [[*range(10, 17), 0]], 0), ("decode", [[1]], 7)]
    with pytest.raises(RungError, match="a prompt of 2 tokens after 8 others does not fit a cache of 8"):
        running.extend([1, 2])
    tape = Tape(TEXT, slots=8)
    running = session(monkeypatch, tape, SessionInputs())
    running.prefill(prompt(3), 8)
    running.extend([1, 2, 3, 4, 5])  # a call of eight would be padded past the end, one of four begins too late
    assert given(tape)[1:] == [("prefill", [[1, 2, 3, 4]], 3), ("decode", [[5]], 7)]
