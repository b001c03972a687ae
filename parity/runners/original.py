"""The original model from transformers: eager attention, float32, or float64 throughout (the oracle)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.authoring.checkpoint import weight_files
from parity.errors import RungError
from parity.inputs import TokenizedPrompt
from parity.runners.base import Prefilled, Session
from parity.runners.precision import Precision, everything_float64
from parity.trace import Logits

if TYPE_CHECKING:
    from parity.runners.conveyor import Line
    from parity.runners.store import Store


@dataclass(frozen=True)
class Original:
    """The model that transformers builds from ``folder``. No pickles, nothing from the network.

    It knows nothing of how a prompt is to be driven: a prompt goes in one piece, each row of a batch by itself.

    ``remote_code`` lets a model that transformers lacks run the code published with it; a reference of this project
    stands in where that code does not run.
    """

    folder: Path
    precision: Precision = "float32"
    threads: int = 1
    remote_code: bool = False
    one_row: bool = False

    @property
    def name(self) -> str:
        return "original64" if self.precision == "float64" else "original"

    @property
    def at_once(self) -> bool:
        """Only the oracle: in which calls its tokens come is seen in the sixteenth digit, and rounding is not its
        subject."""
        return self.precision == "float64"

    @contextmanager
    def open(self) -> Iterator[Session]:
        """Load with the library's own reader, which must place every tensor and initialize none."""
        import torch

        from parity.runners.openelm import OpenELMSession

        torch.set_num_threads(self.threads)
        dtype = getattr(torch, self.precision)
        with torch.no_grad():
            if _model_type(self.folder) != "openelm":
                with self._precisely():
                    yield session_of(self._load(dtype))
                return
            refused = ""
            if self.remote_code:
                with self._precisely():
                    published = self._published(dtype)
                    if isinstance(published, OriginalSession):
                        yield published
                        return
                refused = f"; the code published with the checkpoint was tried and does not run here ({published})"
            yield OpenELMSession(self.folder, dtype, refused)

    def _precisely(self) -> AbstractContextManager[Any]:
        return everything_float64() if self.precision == "float64" else nullcontext()

    def _published(self, dtype: Any) -> OriginalSession | str:
        """The code that lies in the folder once it has answered a token and decoded another, or why it does not run."""
        try:
            session = OriginalSession(self._load(dtype, remote_code=True), "the code published with the checkpoint")
            session.prefill(TokenizedPrompt("trial", (0,), ()), 2)
            session.decode(0)
        except Exception as error:  # noqa: BLE001  (foreign code can raise anything)
            return " ".join(f"{type(error).__name__}: {error}".split())[:300]
        return session

    @contextmanager
    def stream(self) -> Iterator[Line]:
        """As ``open``, one stage at a time. Code that is published with a checkpoint is not run so."""
        import torch

        from parity.runners.openelm import OpenELMLine
        from parity.runners.store import Store
        from parity.runners.streamed_original import OriginalLine

        torch.set_num_threads(self.threads)
        dtype = getattr(torch, self.precision)
        with torch.no_grad():
            store = Store(weight_files(self.folder))
            if _model_type(self.folder) == "openelm":
                yield OpenELMLine(self.folder, store, dtype)
                return
            with self._precisely():
                yield OriginalLine(self._place(store, dtype), store)

    def _load(self, dtype: Any, *, remote_code: bool = False) -> Any:
        reader = _reader(self.folder, remote_code=remote_code)
        named = {"local_files_only": True, "trust_remote_code": remote_code, "use_safetensors": True}
        return self._loaded(lambda **how: reader.from_pretrained(self.folder, dtype=dtype, **named, **how))

    def _place(self, store: Store, dtype: Any) -> Any:
        """The model as it is loaded, its parameters without values; the library has found a place for every tensor."""
        from transformers import AutoConfig, GenerationConfig

        config = AutoConfig.from_pretrained(self.folder, local_files_only=True)
        kind = _reader(self.folder, remote_code=False)._model_mapping[type(config)]  # noqa: SLF001  (no public way)
        model = self._loaded(
            lambda **how: kind.from_pretrained(None, config=config, state_dict=store.promises(), dtype=dtype, **how)
        )
        for name, parameter in model.named_parameters(remove_duplicate=False):
            if not hasattr(parameter, "source"):
                raise RungError(f"transformers computes {name} while it loads; run this original without --streamed")
        file = next(name for name in ("generation_config.json", "config.json") if (self.folder / name).is_file())
        model.generation_config = GenerationConfig.from_pretrained(
            self.folder, config_file_name=file, _from_model_config=file == "config.json", local_files_only=True
        )
        return model

    def _loaded(self, load: Callable[..., Any]) -> Any:
        try:
            model, info = load(attn_implementation="eager", output_loading_info=True)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise RungError(f"transformers cannot load {self.folder}: {' '.join(str(error).split())[:300]}") from error
        for problem in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
            if found := sorted(map(str, info.get(problem, ()))):
                raise RungError(f"transformers reports {problem} in {self.folder}: {', '.join(found[:3])}")
        return model.eval()


def _reader(folder: Path, *, remote_code: bool) -> Any:
    """The library's reader for the kind of model that the configuration describes."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=remote_code)
    readers = (
        transformers.AutoModelForImageTextToText,
        transformers.AutoModelForSpeechSeq2Seq,
        transformers.AutoModelForSeq2SeqLM,
    )
    fitting = (reader for reader in readers if type(config) in reader._model_mapping)  # noqa: SLF001  (no public way)
    return next(fitting, transformers.AutoModelForCausalLM)


def _model_type(folder: Path) -> str:
    return str(json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type"))


class OriginalSession:
    """A causal language model and its cache."""

    def __init__(self, model: Any, note: str = "") -> None:
        self.model = model
        self.note = note
        self.end_tokens = end_tokens_of(model)
        self.cache: Any = None
        #: What a prompt starts over with; without a cache the library makes one.
        self.fresh: Callable[[], Any] = lambda: None

    def prefill(self, prompt: TokenizedPrompt, until: int) -> Prefilled:  # noqa: ARG002  (its cache grows as it must)
        return Prefilled(self.start(prompt.prompt))

    def decode(self, token: int) -> Logits:
        logits: Logits = self.extend([token])[0]
        return logits

    def extend(self, tokens: Sequence[int]) -> Logits:
        return self._run(tokens)

    def start(self, tokens: Sequence[int], **given: Any) -> Logits:
        """Start over with ``tokens`` and what else the model takes along with them; logits ``[T, V]``."""
        self.cache = self.fresh()
        return self._run(tokens, **given)

    def _run(self, tokens: Sequence[int], **given: Any) -> Logits:
        import torch

        output = self.model(torch.tensor([tokens]), past_key_values=self.cache, use_cache=True, **given)
        self.cache = output.past_key_values
        logits: Logits = output.logits[0].numpy()
        return logits


class EncoderDecoderOriginal:
    """A model whose encoder reads what goes with the prompt, once."""

    note = ""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.end_tokens = end_tokens_of(model)
        self.encoded: Any = None
        self.cache: Any = None

    def prefill(self, prompt: TokenizedPrompt, until: int) -> Prefilled:  # noqa: ARG002  (its cache grows as it must)
        import torch

        self.cache = None
        media = {name: torch.tensor(value) for name, value in prompt.media.items()}
        # Values as precise as the model; ids are what they are.
        media = {k: value.to(self.model.dtype) if value.is_floating_point() else value for k, value in media.items()}
        self.encoded = self.model.get_encoder()(**media)
        return Prefilled(self._run(prompt.prompt), self.encoded.last_hidden_state[0].numpy())

    def decode(self, token: int) -> Logits:
        logits: Logits = self.extend([token])[0]
        return logits

    def extend(self, tokens: Sequence[int]) -> Logits:
        return self._run(tokens)

    def _run(self, tokens: Sequence[int]) -> Logits:
        import torch

        output = self.model(
            encoder_outputs=self.encoded,
            decoder_input_ids=torch.tensor([tokens]),
            past_key_values=self.cache,
            use_cache=True,
        )
        self.cache = output.past_key_values
        logits: Logits = output.logits[0].numpy()
        return logits


class ImageTextOriginal:
    """A causal language model that is shown pictures along with the prompt."""

    note = ""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.text = OriginalSession(model)
        self.end_tokens = self.text.end_tokens
        #: Whether pictures have positions on several axes.
        self.axial = hasattr(model.model, "rope_deltas")

    def prefill(self, prompt: TokenizedPrompt, until: int) -> Prefilled:  # noqa: ARG002  (its cache grows as it must)
        import torch

        given = {name: torch.tensor(value) for name, value in prompt.media.items()}
        encoded = torch.cat(tuple(self.model.get_image_features(**given).pooler_output)).numpy() if given else None
        tokens = torch.tensor([prompt.prompt])
        given["attention_mask"] = torch.ones_like(tokens)
        if self.axial:
            # Without a type for every token the original takes plain positions; those of an earlier prompt linger.
            given["mm_token_type_ids"] = (tokens == self.model.config.image_token_id).int()
            self.model.model.rope_deltas = None
        else:
            # Without a type for every token, prompt as well as picture, the original takes another mask than it was
            # trained with.
            given["token_type_ids"] = torch.zeros_like(tokens)
        return Prefilled(self.text.start(prompt.prompt, **given), encoded)

    def decode(self, token: int) -> Logits:
        return self.text.decode(token)

    def extend(self, tokens: Sequence[int]) -> Logits:
        return self.text.extend(tokens)


def session_of(model: Any) -> Session:
    """The session that fits the kind of model."""
    if hasattr(model, "get_image_features"):
        return ImageTextOriginal(model)
    return EncoderDecoderOriginal(model) if model.config.is_encoder_decoder else OriginalSession(model)


def end_tokens_of(model: Any) -> frozenset[int]:
    """What the library takes for the end of a text: one id, a list of them, or nothing.

    Code that is published with a checkpoint need not know of generation; then the configuration says it.
    """
    named = getattr(model, "generation_config", model.config).eos_token_id
    return frozenset(named if isinstance(named, list) else [] if named is None else [named])
