"""What crosses the boundaries between the stages of an original, and the same original fed with what should.

The stages are those of the re-authored model, by its names; the modules between which they lie are found by the
structure that the models of transformers share. Values are kept as rows in the order of the prompt or of the picture,
whatever order the original computes them in.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from models.authoring.session import Tensors
from parity import isolated
from parity.compare.bisect import Measurements, Place, Tally, compare_rows
from parity.errors import RungError
from parity.files import whole_file
from parity.inputs import Inputs, TokenizedPrompt
from parity.runners.base import Session
from parity.runners.openelm import OpenELMSession
from parity.runners.original import EncoderDecoderOriginal, ImageTextOriginal, Original
from parity.trace import Phase

if TYPE_CHECKING:
    from torch import Tensor

#: Rows ``[R, ...]`` of one prompt, by ``stage/tensor``.
Rows = Mapping[str, NDArray[Any]]


def record_boundaries(oracle: Original, inputs: Inputs, folder: Path, progress: isolated.Progress) -> None:
    """A job: what the oracle's stages make of every prompt, each in a file of ``folder``, see ``rows_file``."""
    from safetensors.numpy import save_file

    with oracle.open() as session, tapped(session) as tap:
        for number, prompt in enumerate(inputs.prompts):
            progress(number, len(inputs.prompts))
            rows = tap.run(session, prompt)
            with whole_file(rows_file(folder, number)) as temporary:
                save_file({name: np.ascontiguousarray(value) for name, value in rows.items()}, temporary)


def measure_original(original: Original, inputs: Inputs, folder: Path, progress: isolated.Progress) -> Measurements:
    """A job: the noise floor of each stage, the float32 original's error when it is fed what the oracle's has made."""
    tally = Tally()
    with original.open() as session, tapped(session) as tap:
        for number, prompt in enumerate(inputs.prompts):
            progress(number, len(inputs.prompts))
            expected = read_rows(folder, number)
            made = tap.run(session, prompt, expected)
            for name, rows in expected.items():
                stage, _, tensor = name.partition("/")
                for phase, part in _phases(name, tap, len(prompt.prompt)):
                    if len(rows[part]):
                        tally.add(Place(phase, stage), tensor, compare_rows(rows[part], made[name][part]))
    return tally.measured()


def rows_file(folder: Path, number: int) -> Path:
    """Where the rows of a prompt are, by its place in the set."""
    return folder / f"boundaries_{number}.safetensors"


def read_rows(folder: Path, number: int) -> Rows:
    """What ``record_boundaries`` wrote."""
    from safetensors.numpy import load_file

    rows: Rows = load_file(rows_file(folder, number))
    return rows


def _phases(name: str, tap: Tap, prompt: int) -> list[tuple[Phase, slice]]:
    if name in tap.encoded:
        return [("encode", slice(None))]
    return [("prefill", slice(None, prompt)), ("decode", slice(prompt, None))]


class Tap:
    """Stands at the boundaries of a session: notes what passes, and passes on what it was given to feed instead."""

    def __init__(self) -> None:
        self.fed: Rows | None = None
        self.media: Tensors = {}
        self.noted: dict[str, list[NDArray[Any]]] = defaultdict(list)
        #: What is made once a prompt, by an encoder.
        self.encoded: set[str] = set()

    def run(self, session: Session, prompt: TokenizedPrompt, fed: Rows | None = None) -> Rows:
        """The prompt and what is forced after it; the rows of every boundary."""
        self.fed, self.media = fed, prompt.media
        self.noted.clear()
        logits = [session.prefill(prompt, prompt.until(0)).logits]
        if isinstance(session, EncoderDecoderOriginal):
            self._note_cross(session.cache)
        logits += [session.decode(token)[None] for token in prompt.continuation]
        if prompt.turn:
            logits.append(session.extend(prompt.turn))
        logits += [session.decode(token)[None] for token in prompt.reply]
        rows = {name: np.concatenate(parts) for name, parts in self.noted.items()}
        return {**rows, "head/logits": np.concatenate(logits)}

    def pass_on(self, name: str, value: Tensor, order: Tensor | None = None, *, encoded: bool = False) -> Tensor:
        """Note ``value`` ``[..., D]``; ``order`` says which row of the picture each of its rows is.

        An encoder may be run again for the same prompt: what is ``encoded`` is noted the first time.
        """
        import torch

        rows = value.reshape(-1, value.shape[-1])
        start = 0 if encoded else sum(map(len, self.noted[name]))
        if encoded:
            self.encoded.add(name)
        if not (encoded and self.noted[name]):
            natural = rows if order is None else rows[torch.argsort(order)]
            self.noted[name].append(natural.numpy().copy())
        if self.fed is None:
            return value
        expected = torch.from_numpy(self.fed[name][start : start + len(rows)]).to(value.dtype)
        return (expected if order is None else expected[order]).reshape(value.shape)

    def _note_cross(self, cache: Any) -> None:
        """Keys and values ``[1, N, S, H]`` that the decoder keeps of what was encoded."""
        from models.authoring.model import cross_names

        for i, layer in enumerate(cache.cross_attention_cache.layers):
            for name, value in zip(cross_names(i), (layer.keys, layer.values), strict=True):
                key = f"cross_{i}/{name}"
                self.encoded.add(key)
                self.noted[key].append(value[0].transpose(0, 1).flatten(1).numpy().copy())


@contextmanager
def tapped(session: Session) -> Iterator[Tap]:
    """A tap at every boundary of the session's model; it is taken off again at the end.

    Raises:
        RungError: the model has another structure than those of transformers.
    """
    tap = Tap()
    if isinstance(session, OpenELMSession):
        session.pass_on = lambda stage, stream: tap.pass_on(f"{stage}/hidden", stream)
        yield tap
        return
    handles = [_attach(point, tap) for point in _points(session)]
    try:
        yield tap
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True, kw_only=True)
class _Point:
    """Where the ``tensor`` that ``stage`` makes is to be had: the output of ``module`` (or one of its fields), or the
    first thing it is given."""

    stage: str
    module: Any
    tensor: str = "hidden"
    given: bool = False
    field: str | None = None
    encoded: bool = False
    order: Callable[[Tensors], Tensor | None] = lambda _: None


def _attach(point: _Point, tap: Tap) -> Any:
    name = f"{point.stage}/{point.tensor}"

    def passed(value: Tensor) -> Tensor:
        return tap.pass_on(name, value, point.order(tap.media), encoded=point.encoded)

    def before(_: Any, positional: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if positional:
            return (passed(positional[0]), *positional[1:]), named
        key = next(key for key in ("hidden_states", "inputs_embeds") if key in named)
        return positional, {**named, key: passed(named[key])}

    def after(_: Any, __: Any, output: Any) -> Any:
        if point.field is not None:
            setattr(output, point.field, passed(getattr(output, point.field)))
            return output
        return (passed(output[0]), *output[1:]) if isinstance(output, tuple) else passed(output)

    if point.given:
        return point.module.register_forward_pre_hook(before, with_kwargs=True)
    return point.module.register_forward_hook(after)


def _points(session: Session) -> Iterator[_Point]:
    """Every boundary of a transformers model but that after its head, whose logits the session gives."""
    model: Any = getattr(session, "model", None)
    decoder = "decoder" if isinstance(session, EncoderDecoderOriginal) else "block"
    yield from _stack("embed", decoder, _layers(model.get_decoder()))
    if isinstance(session, EncoderDecoderOriginal):
        encoder = model.get_encoder()
        yield from _stack("stem", "encoder", _layers(encoder), encoded=True)
        yield _Point(stage="encoder_norm", module=encoder, tensor="encoded", field="last_hidden_state", encoded=True)
    if isinstance(session, ImageTextOriginal):
        tower = model.get_encoder("image")
        yield from _windowed(tower) if hasattr(tower, "patch_embed") else _plain(tower, model)


def _stack(before: str, block: str, layers: Any, *, encoded: bool = False) -> Iterator[_Point]:
    yield _Point(stage=before, module=layers[0], given=True, encoded=encoded)
    for i, layer in enumerate(layers):
        yield _Point(stage=f"{block}_{i}", module=layer, encoded=encoded)


def _plain(tower: Any, model: Any) -> Iterator[_Point]:
    """A tower that knows one size of picture, and the projector after it."""
    yield from _stack("stem", "vision", _layers(tower.encoder), encoded=True)
    yield _Point(stage="vision_norm", module=tower.post_layernorm, encoded=True)
    projector = model.base_model.multi_modal_projector
    yield _Point(stage="projector", module=projector, tensor="encoded", encoded=True)


def _windowed(tower: Any) -> Iterator[_Point]:
    """A tower whose blocks see patches in the order of its windows."""
    import torch
    from transformers.vision_utils import get_vision_window_index

    def order(media: Tensors) -> Tensor:
        grids = torch.tensor(media["image_grid_thw"])
        windows, _ = get_vision_window_index(grids, tower.spatial_merge_size, tower.window_size, tower.patch_size)
        square = tower.spatial_merge_size**2
        patches: Tensor = (windows[:, None] * square + torch.arange(square)).flatten()
        return patches

    yield _Point(stage="stem", module=tower.patch_embed, encoded=True)
    for i, block in enumerate(tower.blocks):
        yield _Point(stage=f"vision_{i}", module=block, encoded=True, order=order)
    yield _Point(stage="merger", module=tower, tensor="encoded", field="pooler_output", encoded=True)


def _layers(stack: Any) -> Any:
    """The list of layers of a stack, whatever the library calls it there."""
    found = (getattr(stack, name, None) for name in ("layers", "block", "h"))
    layers = next((layers for layers in found if layers is not None), None)
    if layers is None:
        raise RungError(
            f"{type(stack).__name__} has no list of layers that is known here; teach parity/runners/boundaries.py"
        )
    return layers
