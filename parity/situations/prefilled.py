"""The situations of models that are given a prompt of several tokens: decoder-only ones, with or without pictures."""

from __future__ import annotations

from dataclasses import replace

from models.authoring.config import Llama3Scaling
from parity.inputs import TokenizedPrompt
from parity.situations.making import DECODED, REACHABLE, Made, Makings

ONE_CALL = "a prompt goes in one call, because its tokens all see each other"


def signatures(makings: Makings) -> Made:
    """The same prompt through each prefill length, through all of them in turn, and token by token."""
    shortest, longest = makings.lengths[0], makings.lengths[-1]
    ways: dict[str, tuple[int, ...]] = {str(length): (length,) for length in makings.lengths}
    if makings.whole:
        if len(ways) == 1:
            return f"{ONE_CALL}, and there is one prefill length; give another --prefill"
        counts = [max(1, shortest - 3)]
    else:
        counts = [max(2, longest - 3), max(2, longest + shortest - 3)]
        ways |= {"mixed": makings.lengths} if len(ways) > 1 else {}
    made = [
        replace(makings.prompt(f"signatures/{count}-{way}", count, seed=f"{count}", pictured=makings.whole), through=to)
        for count in counts
        for way, to in {**ways, **({} if makings.whole else {"stepwise": ()})}.items()
    ]
    shown = makings.pictured
    if shown and not makings.whole:  # a call of one token is given no rows of a picture
        count = len(shown.prompt) + 5
        made += [
            replace(makings.prompt(f"signatures/picture-{way}", count, seed="picture", pictured=True), through=to)
            for way, to in ways.items()
        ]
    return made


def edges(makings: Makings) -> Made:
    """As many tokens as a prefill takes, one fewer and one more; the same for twice as many."""
    around = (-1, 0, 1)
    if makings.whole:
        # One more than a prefill takes goes through the next longer one.
        holding = {count: [n for n in makings.lengths if n >= count] for n in makings.lengths for count in _near(n)}
        return [
            replace(makings.prompt(f"edges/{count}", count, pictured=True), through=tuple(lengths[:1]))
            for count, lengths in holding.items()
            if lengths
        ]
    made = []
    for length in makings.lengths:
        multiples = [length, 2 * length]
        if makings.pictured:
            multiples.append(-(-(len(makings.pictured.prompt) + 2) // length) * length)
        made += [
            replace(makings.prompt(f"edges/{count}-by-{length}", count, pictured=multiple > 2 * length), through=to)
            for multiple in dict.fromkeys(multiples)
            for count in (multiple + by for by in around)
            if count > 0
            for to in [(length,)]
        ]
    return made


def _near(length: int) -> list[int]:
    return [count for count in (length - 1, length, length + 1) if count > 0]


def padding(makings: Makings) -> Made:
    """Two or three tokens in the longest prefill; then decode, and a second turn, overwrite what padded it."""
    longest = makings.lengths[-1]
    if longest < 5:
        return f"a prefill of {longest} is hardly padded; give a longer --prefill"
    made = [makings.prompt(f"padding/{count}-in-{longest}", count, decoded=longest - count + 2) for count in (2, 3)]
    if not makings.whole:
        made.append(with_turn(makings, "padding/turn", (3, 1, longest // 2, 4)))
    return [replace(prompt, through=(longest,)) for prompt in made]


def beyond(makings: Makings) -> Made:
    """Positions from which on a scaling matters that an original context decides, or the last that the model knows."""
    config = makings.text_config
    if config.boundary is not None:
        return f"its frequencies change at {config.boundary} positions, which the set regimes is about"
    if isinstance(config.rope.scaling, Llama3Scaling):
        original = config.rope.scaling.original_max_positions
        if original > REACHABLE // 2:
            return f"its original context of {original} positions is longer than the {REACHABLE} that are tried"
        counts = {original - 4: 10, original + 7: DECODED, 2 * original + 5: DECODED}
        return [makings.prompt(f"beyond/{count}", count, decoded=decoded) for count, decoded in counts.items()]
    if config.max_positions > REACHABLE:
        return f"nothing changes before its {config.max_positions} positions, more than the {REACHABLE} that are tried"
    if makings.whole:
        return ONE_CALL
    return [makings.prompt("beyond/last", config.max_positions - DECODED)]


def window(makings: Makings) -> Made:
    """Sessions within a window, ones that leave it in decode or in prefill, and chunks that begin inside one."""
    windows = sorted({size for block in makings.text_config.blocks if (size := block.attention.window) is not None})
    if not windows:
        return "no layer has a window"
    reached = [size for size in windows if size <= REACHABLE // 2]
    if not reached:
        return f"its window of {windows[0]} positions is longer than the {REACHABLE // 2} that are tried"
    chunk = makings.lengths[0]
    made = []
    for size in reached:
        sizes = {"within": (size - 2, 1), "decode": (size - 1, size + 3), "at": (size, 3), "prefill": (size + 1, 3)}
        sizes |= {} if makings.whole else {"chunk": (chunk + size // 2, size + 1), "far": (3 * size + chunk, 3)}
        made += [
            makings.prompt(f"window/{size}-{label}", max(1, count), decoded=decoded)
            for label, (count, decoded) in sizes.items()
        ]
    if makings.pictured:
        made.append(makings.prompt("window/picture", len(makings.pictured.prompt) + 2, pictured=True))
    # In pieces: a window that is wrong between two calls of prefill shows in no other way.
    return made if makings.whole else [replace(prompt, through=(chunk,)) for prompt in made]


def turns(makings: Makings) -> Made:
    """A prompt, its continuation, several more tokens at once, and what follows them."""
    if makings.whole:
        return f"{ONE_CALL}; what follows it goes token by token"
    length = makings.lengths[0]
    sizes = [(13, 6, 21, 6), (length, 1, 2, 8), (5, 3, 9, 6)]
    if (boundary := makings.config.boundary) is not None:
        sizes.append((boundary + 3, 4, 20, 6))
    made = [with_turn(makings, f"turns/{'-'.join(map(str, size))}", size) for size in sizes]
    made.append(replace(with_turn(makings, "turns/stepwise", sizes[0]), through=()))
    if makings.pictured:
        made.append(with_turn(makings, "turns/picture", (len(makings.pictured.prompt) + 2, 4, 11, 4)))
    return made


def with_turn(makings: Makings, name: str, sizes: tuple[int, int, int, int]) -> TokenizedPrompt:
    """A prompt, continuation, second turn and reply of these sizes."""
    count, decoded, turn, reply = sizes
    return replace(
        makings.prompt(name, count, decoded=decoded, pictured=True),
        turn=makings.text(turn, f"{name} and then"),
        reply=makings.text(reply, f"{name} at last"),
    )


def full(makings: Makings) -> Made:
    """The last slot of the cache written by decode, and by the last call of prefill."""
    made = []
    for slots in makings.slots:
        if makings.whole:
            count = min(slots - 1, makings.lengths[-1])
            made.append(makings.prompt(f"full/{slots}-by-decode", count, decoded=slots - count, pictured=True))
            continue
        # The last call is padded up to the very end; the reply then takes the slot of the padding.
        chunk = max(2, makings.lengths[0])
        sizes = (slots - chunk - 3, 3, chunk - 1, 1)
        made.append(replace(with_turn(makings, f"full/{slots}-by-padding", sizes), through=(chunk,)))
        if slots <= REACHABLE:
            made.append(makings.prompt(f"full/{slots}-by-decode", slots - DECODED))
            exactly = with_turn(makings, f"full/{slots}-by-prefill", (slots - chunk - 3, 3, chunk, 0))
            made.append(replace(exactly, through=(chunk,)))
    return made


def batch(makings: Makings) -> Made:
    """Two prompts of the same length as rows of a batch; each is compared."""
    count = max(1, min(21, makings.lengths[0] - 2 if makings.whole else 21))
    made = []
    for way, to in {"free": None, str(makings.lengths[0]): makings.lengths[:1]}.items():
        pair = [replace(makings.prompt(f"batch/{way}-{row}", count), through=to, row=row) for row in (0, 1)]
        made += [
            replace(prompt, beside=(*other.prompt, *other.continuation))
            for prompt, other in zip(pair, reversed(pair), strict=True)
        ]
    return made


def repeated(makings: Makings) -> Made:
    """One token again and again, also with nothing before it, and two in turn."""
    first, second = makings.text(2, "repeated")
    begins = makings.material.begins
    made = []
    for count in (min(20, makings.lengths[-1]),) if makings.whole else (20, 40):
        runs = {"one": (first,) * count, "begun": (*begins, *(first,) * count)[:count], "two": (first, second) * count}
        made += [
            replace(makings.prompt(f"repeated/{label}-{count}", count), prompt=run[:count], continuation=run[-DECODED:])
            for label, run in runs.items()
        ]
    if makings.pictured:
        count = len(makings.pictured.prompt)
        said = makings.prompt("repeated/picture", count, pictured=True)
        made.append(replace(said, continuation=(first,) * DECODED))
    return made


def special(makings: Makings) -> Made:
    """The tokenizer's own marks in the middle of a text and of its continuation."""
    marks = makings.material.special
    if not marks:
        return "its tokenizer has no marks of its own"
    count = min(21, makings.lengths[-1]) if makings.whole else 21
    made = []
    for label, inside in {**{str(mark): (mark,) for mark in marks}, "all": marks}.items():
        said = makings.prompt(f"special/{label}", count)
        made.append(replace(said, prompt=_inside(said.prompt, inside), continuation=_inside(said.continuation, inside)))
    if makings.pictured:
        said = makings.prompt("special/picture", len(makings.pictured.prompt), pictured=True)
        made.append(replace(said, continuation=_inside(said.continuation, marks)))
    return made


def _inside(text: tuple[int, ...], marks: tuple[int, ...]) -> tuple[int, ...]:
    """The text with the marks in the place of as many tokens in its middle."""
    middle = len(text) // 2
    return (*text[:middle], *marks, *text[middle:])[: max(len(text), middle + len(marks) + 1)]
