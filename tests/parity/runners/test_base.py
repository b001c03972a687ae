"""The loop that drives a session: teacher forcing, then generation, free or led along a guide."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from parity.errors import RungError
from parity.inputs import TokenizedPrompt
from parity.runners.base import Prefilled, converse, hold
from parity.trace import BEST, Logits, PromptTrace

VOCABULARY = 8
PROMPT = TokenizedPrompt("p", (1, 2), (3,))


class Counter:
    """A model that says the number after the last token."""

    note = ""

    def __init__(self, end_tokens: Sequence[int] = (), broken_at: int | None = None) -> None:
        self.end_tokens = frozenset(end_tokens)
        self.broken_at = broken_at
        self.given: list[int] = []
        self.until = 0

    def prefill(self, prompt: TokenizedPrompt, until: int) -> Prefilled:
        self.given = []
        self.until = until
        return Prefilled(np.stack([self.after(token) for token in prompt.prompt]))

    def decode(self, token: int) -> Logits:
        self.given.append(token)
        return self.after(token)

    def after(self, token: int) -> Logits:
        logits = -np.abs((np.arange(VOCABULARY) - (token + 1)) % VOCABULARY).astype(np.float32)
        if token == self.broken_at:
            logits[0] = np.nan
        return logits


def answer(session: Counter, generate: int, guide: Sequence[int] | None = None) -> PromptTrace:
    return hold(converse(session.end_tokens, PROMPT, generate, guide), session)


def test_free_generation_goes_on_from_its_own_choice() -> None:
    """As many tokens as asked for, each after the one before it, with how far the next best ones were."""
    steps = answer(Counter(), 4).steps
    assert steps.chosen == (3, 4, 5, 6)
    assert steps.ids[0].tolist() == [3, 4, 5, 6, 7]
    assert steps.margins.tolist() == [list(range(BEST))] * 4
    assert not steps.ends.any()


@pytest.mark.parametrize(("ends", "said"), [((5,), (3, 4, 5)), ((5, 4), (3, 4)), ((3,), (3,)), ((1,), (3, 4, 5, 6))])
def test_free_generation_stops_at_an_end(ends: Sequence[int], said: tuple[int, ...]) -> None:
    """The token that ends the text is the last; no more calls are made."""
    session = Counter(ends)
    steps = answer(session, 4).steps
    assert steps.chosen == said
    assert steps.ends.tolist() == [token in ends for token in said]
    assert session.given == list(said[:-1])


def test_a_guided_rung_says_what_it_would_choose() -> None:
    """It goes on with the guide's tokens, not its own, also past what it takes for the end."""
    session = Counter((5,))
    steps = answer(session, 4, (3, 4, 0, 1)).steps
    assert session.given == [3, 4, 0]
    assert steps.chosen == (3, 4, 5, 1)
    assert steps.ends.tolist() == [False, False, True, False]


@pytest.mark.parametrize("guide", [None, (), (3,), (3, 4, 5, 6)])
def test_a_session_is_as_long_as_it_could_get(guide: Sequence[int] | None) -> None:
    """However soon the text that leads it ends: what a model computes may depend on how long its session gets."""
    session = Counter((4,))
    steps = answer(session, 4, guide).steps
    assert len(steps) == (2 if guide is None else len(guide))
    assert session.until == len(PROMPT.prompt) + 4


def test_without_generation_there_are_no_steps() -> None:
    """The forced part is there all the same."""
    whole = answer(Counter(), 0)
    assert whole.steps.chosen == ()
    assert (whole.prefill.shape, whole.decode.shape) == ((2, VOCABULARY), (1, VOCABULARY))


def test_of_equal_logits_the_first_is_chosen() -> None:
    """As argmax does, so that rungs which compute the same choose the same."""
    session = Counter()
    session.after = lambda _: np.asarray([0, 1, 1, 0, 1, 0, 0, 0], np.float32)  # type: ignore[method-assign]
    steps = answer(session, 1).steps
    assert steps.ids[0, :3].tolist() == [1, 2, 4]
    assert steps.margins[0].tolist() == [0, 0, 0, 1, 1]


def test_nan_while_generating_is_an_error() -> None:
    """No token is chosen among logits that are none."""
    with pytest.raises(RungError, match="NaN or infinity in the logits of generated token 2 of prompt p"):
        answer(Counter(broken_at=4), 4)
