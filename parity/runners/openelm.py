"""OpenELM as its paper and its published tensors describe it: the original rung where transformers has none.

Independent on purpose: plain tensor operations, the published names, no code shared with ``models/`` (a test asserts
it). As in the published code, cached keys are not rotated; all of them are, at every step.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parity.errors import RungError
from parity.inputs import TokenizedPrompt
from parity.runners.base import Ask, Decode, Extend, Prefill, Prefilled
from parity.runners.conveyor import Asked, Call
from parity.runners.store import Store
from parity.trace import Logits

if TYPE_CHECKING:
    from torch import Tensor

#: Keys and values of every layer, of the tokens so far.
Past = dict[int, "tuple[Tensor, Tensor]"]

EPSILON = 1e-6
TABLE = "transformer.token_embeddings.weight"
OF_A_LAYER = (
    *("attn_norm", "attn.qkv_proj", "attn.q_norm", "attn.k_norm", "attn.out_proj"),
    *("ffn_norm", "ffn.proj_1", "ffn.proj_2"),
)


class OpenELMSession:
    """The weights of ``folder`` in ``dtype``, and the keys and values of the tokens so far.

    ``refused`` says why the published code is not run, if that was tried. Without ``weights`` a stage's must be put
    there before a call goes through it.
    """

    def __init__(self, folder: Path, dtype: Any, refused: str = "", *, weights: bool = True) -> None:
        from safetensors.torch import load_file

        self.config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        files = sorted(folder.glob("*.safetensors")) if weights else []
        self.weights = {name: tensor.to(dtype) for file in files for name, tensor in load_file(file).items()}
        self.head_dim = int(self.config["head_dim"])
        self.layers = int(self.config["num_transformer_layers"])
        self.end_tokens = _end_tokens(folder)
        self.dtype = dtype
        self.past: Past = {}
        #: Is given the stream that each stage has made, and gives what the next one goes on with.
        self.pass_on: Callable[[str, Tensor], Tensor] = lambda _, stream: stream
        self.note = f"an independent reference in plain tensor operations, transformers has no openelm{refused}"

    def prefill(self, prompt: TokenizedPrompt, until: int) -> Prefilled:  # noqa: ARG002  (its cache grows as it must)
        self.past = {}
        return Prefilled(self.extend(prompt.prompt))

    def decode(self, token: int) -> Logits:
        logits: Logits = self.extend([token])[0]
        return logits

    def extend(self, tokens: Sequence[int]) -> Logits:
        going = self.through(tokens, self.past)
        while True:
            try:
                next(going)
            except StopIteration as end:
                logits: Logits = end.value
                return logits

    def through(self, tokens: Sequence[int], past: Past) -> Generator[str, None, Logits]:
        """Logits ``[T, V]`` of more tokens; gives the name of each stage before it needs its weights."""
        import torch

        yield "embed"
        stream = self.pass_on("embed", self.weights[TABLE][torch.tensor(tokens)])
        for layer in range(self.layers):
            yield f"block_{layer}"
            stream = stream + self._attention(layer, self._norm(stream, f"layers.{layer}.attn_norm"), past)
            hidden = self._norm(stream, f"layers.{layer}.ffn_norm") @ self._weight(layer, "ffn.proj_1").T
            activated, linear = hidden.chunk(2, dim=-1)
            stream = stream + (activated * torch.sigmoid(activated) * linear) @ self._weight(layer, "ffn.proj_2").T
            stream = self.pass_on(f"block_{layer}", stream)
        yield "head"
        logits: Logits = (self._norm(stream, "norm") @ self.weights[TABLE].T).numpy()
        return logits

    def _weight(self, layer: int, name: str) -> Tensor:
        return self.weights[f"transformer.layers.{layer}.{name}.weight"]

    def _norm(self, x: Tensor, name: str) -> Tensor:
        gain = self.weights[f"transformer.{name}.weight"]
        return x / (x.square().mean(-1, keepdim=True) + EPSILON).sqrt() * gain

    def _attention(self, layer: int, x: Tensor, past: Past) -> Tensor:
        """``[T, D]`` -> ``[T, D]`` over everything seen so far; keeps the layer's unrotated keys and its values."""
        import torch

        rows = x @ self._weight(layer, "attn.qkv_proj").T
        heads = rows.view(len(x), -1, self.head_dim)
        query_width = self._weight(layer, "attn.out_proj").shape[1]
        queries = query_width // self.head_dim
        shared = (heads.shape[1] - queries) // 2
        query, key, value = torch.split(heads, [queries, shared, shared], dim=1)
        query = self._norm(query, f"layers.{layer}.attn.q_norm")
        key = self._norm(key, f"layers.{layer}.attn.k_norm")
        if layer in past:
            key, value = torch.cat([past[layer][0], key]), torch.cat([past[layer][1], value])
        past[layer] = key, value
        total, new = len(key), len(query)
        query, key = self._rotate(query, total - new), self._rotate(key, 0)
        attended = torch.empty_like(query)
        future = torch.arange(total)[None, :] > torch.arange(total - new, total)[:, None]
        for head in range(queries):
            of = head // (queries // shared)
            scores = query[:, head] @ key[:, of].T / math.sqrt(self.head_dim)
            attended[:, head] = scores.masked_fill(future, -math.inf).softmax(-1) @ value[:, of]
        return attended.reshape(new, query_width) @ self._weight(layer, "attn.out_proj").T

    def _rotate(self, x: Tensor, start: int) -> Tensor:
        """Heads ``[T, N, H]`` at positions from ``start`` on; the first half of a head pairs with the second."""
        import torch

        half = self.head_dim // 2
        base = float(self.config["rope_freq_constant"])
        frequencies = base ** (-torch.arange(half, dtype=self.dtype) / half)
        angles = torch.arange(start, start + len(x), dtype=self.dtype)[:, None, None] * frequencies
        a, b = x[..., :half], x[..., half:]
        return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], dim=-1)


class OpenELMLine:
    """The same one stage at a time."""

    def __init__(self, folder: Path, store: Store, dtype: Any) -> None:
        self.session = OpenELMSession(folder, dtype, weights=False)
        self.store = store
        self.note = self.session.note
        self.end_tokens = self.session.end_tokens
        self._tensors = {
            "embed": [TABLE],
            **{
                f"block_{layer}": [f"transformer.layers.{layer}.{name}.weight" for name in OF_A_LAYER]
                for layer in range(self.session.layers)
            },
            "head": [TABLE, "transformer.norm.weight"],
        }
        wanted = {name for names in self._tensors.values() for name in names}
        for name in sorted(wanted ^ store.shapes.keys()):
            what = "lacks" if name in wanted else "has, and nothing takes,"
            raise RungError(f"{folder} {what} {name}; fetch the checkpoint again")

    @property
    def stages(self) -> Sequence[str]:
        return list(self._tensors)

    @contextmanager
    def loaded(self, stage: str) -> Iterator[None]:
        names = self._tensors[stage]
        values = self.store.read((name, self.session.dtype) for name in names)
        self.session.weights.update(zip(names, values, strict=True))
        del values
        try:
            yield
        finally:
            self.session.weights.clear()

    def lane(self) -> OpenELMLane:
        return OpenELMLane(self.session)


class OpenELMLane:
    """Keys and values of one prompt."""

    def __init__(self, session: OpenELMSession) -> None:
        self.session = session
        self.past: Past = {}

    def ask(self, ask: Ask) -> Asked:
        match ask:
            case Prefill():
                tokens: Sequence[int] = ask.prompt.prompt
            case Decode():
                tokens = [ask.token]
            case Extend():
                tokens = ask.tokens
        last = isinstance(ask, Prefill) and ask.last
        return Asked([self._call(tokens, last=last)], lambda results: results[0])

    def close(self) -> None:
        """What is kept of a layer is small, and goes with the lane."""

    def _call(self, tokens: Sequence[int], *, last: bool) -> Call:
        logits = yield from self.session.through(tokens, self.past)
        return Prefilled(logits[-1:].copy() if last else logits)


def _end_tokens(folder: Path) -> frozenset[int]:
    """What the files name as the end of a text; the one about generation goes before the model's."""
    apart = folder / "generation_config.json"
    file = apart if apart.is_file() else folder / "config.json"
    named = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id")
    return frozenset(named if isinstance(named, list) else [] if named is None else [named])
