"""Real text that every machine with this project has, drawn from a seed: what false alarms are looked for on.

Python's own documentation strings and sources, licences of installed packages, tables of numbers, other scripts out of
Unicode's tables and Python's codecs, and what is not text: words again and again, random ids, a single token.
"""

from __future__ import annotations

import ast
import math
import random
import re
import sysconfig
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import distributions
from pathlib import Path

from parity.inputs import TokenizedPrompt

#: Tokens that are forced after each prompt, one at a time.
CONTINUATION = 8
#: Positions of a prompt and its continuation, unless its kind says otherwise.
SHORTEST, LONGEST = 12, 40
#: Positions of a long text, continuation included.
LONG = 500
#: Of every thousand prompts, how many are of each kind.
KINDS = {
    "docstrings": 190,
    "sources": 190,
    "licences": 130,
    "numbers": 120,
    "scripts": 150,
    "repeated": 90,
    "random ids": 75,
    "single token": 50,
    "500 tokens": 5,
}
#: Characters of a text that are looked at: more than enough tokens in any script.
_ENOUGH = 600
_ENOUGH_FOR_LONG = 6000
#: First and last code points of letters, and how many make a word.
_SCRIPTS = {
    "Greek": (0x3B1, 0x3C9),
    "Cyrillic": (0x430, 0x44F),
    "Armenian": (0x561, 0x586),
    "Hebrew": (0x5D0, 0x5EA),
    "Arabic": (0x627, 0x64A),
    "Devanagari": (0x905, 0x939),
    "Bengali": (0x985, 0x9B9),
    "Tamil": (0xB85, 0xBB9),
    "Thai": (0xE01, 0xE2E),
    "Georgian": (0x10D0, 0x10F0),
    "Hangul": (0xAC00, 0xD7A3),
    "Hiragana": (0x3042, 0x3093),
    "Katakana": (0x30A2, 0x30F3),
    "Han": (0x4E00, 0x9FA5),
    "emoji": (0x1F300, 0x1F6FF),
    "mathematical": (0x2200, 0x22FF),
}
#: Folders of the standard library without text of their own: what is installed, tests, tables that a program wrote.
_LEFT_OUT = {"site-packages", "test", "tests", "idle_test", "encodings", "__pycache__"}
#: Codecs of one byte a character, whose upper halves are alphabets.
_CODECS = ("cp1251", "koi8_r", "iso8859_7", "iso8859_8", "cp1256", "cp874", "iso8859_2", "cp437", "mac_croatian")


@dataclass(frozen=True)
class Drawn:
    """A prompt, what kind of text it is and where that is from."""

    kind: str
    source: str
    prompt: TokenizedPrompt


class Texts:
    """Prompts by number. ``encode`` turns text into ids, of which there are ``vocabulary``.

    The same seed, machine and tokenizer give the same prompts, each by itself.
    """

    def __init__(self, encode: Callable[[str], Sequence[int]], vocabulary: int, seed: int = 0) -> None:
        self._encode = encode
        self._vocabulary = vocabulary
        self._seed = seed

    def draw(self, number: int) -> Drawn:
        """The prompt of that number. Kinds are shuffled, so that the first few hundred are like the rest."""
        kind = self.kind(number)
        rng = random.Random(f"{self._seed} {number} {kind}")  # noqa: S311
        length = {"single token": 1, "500 tokens": LONG - CONTINUATION}.get(
            kind, rng.randint(SHORTEST, LONGEST) - CONTINUATION
        )
        needed = length + CONTINUATION
        ids: Sequence[int] = ()
        source = ""
        while len(ids) < needed:
            source, ids = self._ids(kind, needed, rng)
        name = f"{number:04d} {kind}"
        prompt = TokenizedPrompt(name, tuple(ids[:length]), tuple(ids[length:needed]), generates=False)
        return Drawn(kind, source, prompt)

    def kind(self, number: int) -> str:
        """What the prompt of that number is."""
        kinds = [kind for kind, count in KINDS.items() for _ in range(count)]
        random.Random(f"{self._seed} {number // len(kinds)}").shuffle(kinds)  # noqa: S311  (no secret)
        return kinds[number % len(kinds)]

    def _ids(self, kind: str, needed: int, rng: random.Random) -> tuple[str, Sequence[int]]:
        if kind == "random ids":
            return "random", [rng.randrange(self._vocabulary) for _ in range(needed)]
        source, text = self._text(kind, rng)
        if kind == "repeated":
            word = rng.choice(re.findall(r"\w+", text) or ["no"])
            count = rng.choice((1, 1, 1, 2, 3))
            words = " ".join([word, *rng.sample(text.split(), min(count - 1, len(text.split())))])
            return f"{source}: {words!r}", self._encode(f"{words} " * needed)
        return source, self._encode(text)

    def _text(self, kind: str, rng: random.Random) -> tuple[str, str]:
        match kind:
            case "licences":
                return self._from(self.licences, rng, _ENOUGH)
            case "sources":
                return self._from(self.modules, rng, _ENOUGH)
            case "500 tokens":
                return self._from(rng.choice((self.licences, self.modules)), rng, _ENOUGH_FOR_LONG)
            case "numbers":
                return _table(rng)
            case "scripts":
                return _script(rng)
        return self._docstring(rng)

    @cached_property
    def modules(self) -> list[Path]:
        """Sources of the standard library."""
        folder = Path(sysconfig.get_paths()["stdlib"])
        return sorted(path for path in (*folder.glob("*.py"), *folder.glob("*/*.py")) if _counts(path, folder))

    @cached_property
    def licences(self) -> list[Path]:
        """Licence texts of installed packages."""
        named = re.compile(r"(?i)(licen[cs]e|copying|notice)[^/]*(?<!\.py)$")
        files = {
            str(file): Path(str(file.locate()))
            for each in distributions()
            for file in each.files or ()
            if named.search(str(file))
        }
        return [path for _, path in sorted(files.items()) if path.is_file()]

    def _from(self, paths: Sequence[Path], rng: random.Random, size: int) -> tuple[str, str]:
        """Some of a file, from the beginning of a line on."""
        path = rng.choice(paths)
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        start = rng.randrange(max(1, len(lines)))
        return path.name, "".join(lines[start:])[:size].lstrip("\n")

    def _docstring(self, rng: random.Random) -> tuple[str, str]:
        path = rng.choice(self.modules)
        found = list(_docstrings(path))
        if not found:
            return path.name, ""
        text = rng.choice(found)
        start = rng.choice([0, *(match.end() for match in re.finditer(r"\.\s+", text))])
        return path.name, text[start : start + _ENOUGH]


def _counts(path: Path, folder: Path) -> bool:
    parts = path.relative_to(folder).parts
    return not _LEFT_OUT & set(parts) and path.stat().st_size > 0


def _docstrings(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node)
            if text and len(text) > 40:
                yield text


def _table(rng: random.Random) -> tuple[str, str]:
    """Rows of numbers, of one of several kinds."""
    start, step, rows = rng.randint(0, 500), rng.randint(1, 60), range(40)
    separator = rng.choice((", ", "\t", " | ", ";", "  "))
    functions: dict[str, Callable[[int], Sequence[object]]] = {
        "squares": lambda x: (x, x * x, x**3),
        "sines": lambda x: (x, f"{math.sin(x):.4f}", f"{math.cos(x):.4f}"),
        "logarithms": lambda x: (x + 1, f"{math.log(x + 1):.6f}", f"{math.sqrt(x):.3f}"),
        "times": lambda x: [x * k for k in range(1, 10)],
        "binary": lambda x: (x, f"{x:b}", f"{x:#x}"),
        "drawn": lambda _: [round(rng.gauss(0, 100), rng.randint(0, 3)) for _ in range(5)],
        "dates": lambda x: (f"{1900 + x % 200}-{1 + x % 12:02d}-{1 + x % 28:02d}", f"{x * 7.25:.2f}"),
    }
    name = rng.choice(list(functions))
    return name, "\n".join(separator.join(map(str, functions[name](start + step * row))) for row in rows)


def _script(rng: random.Random) -> tuple[str, str]:
    """Words of letters of a script, with the names of some of them, or an alphabet as a codec has it."""
    if rng.random() < 0.2:
        codec = rng.choice(_CODECS)
        letters = bytes(range(0x80, 0x100)).decode(codec, errors="ignore")
        letters = "".join(letter for letter in letters if letter.isprintable())
        words = ["".join(rng.choices(letters, k=rng.randint(1, 8))) for _ in range(60)]
        return codec, f"{codec}: " + " ".join(words)
    script, (first, last) = rng.choice(list(_SCRIPTS.items()))
    known = [chr(code) for code in range(first, last + 1) if unicodedata.name(chr(code), "")]
    if rng.random() < 0.3:
        named = rng.choices(known, k=20)
        return f"{script}, named", "\n".join(f"{letter} {unicodedata.name(letter)}" for letter in named)
    return script, " ".join("".join(rng.choices(known, k=rng.randint(1, 7))) for _ in range(60))
