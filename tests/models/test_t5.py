"""T5 against its original: both stacks, any depth and width, padding, the cache, the copies some files carry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from models import registry
from models.authoring.encoder_decoder import EncoderDecoderModel
from models.authoring.hf_config import HFConfig
from models.authoring.weight_map import load_weights, original_layout
from models.errors import CheckpointError, ConfigError

FAMILY = registry.family("t5")
#: Two correct float32 models are each about 1e-6 from the exact result; a wrong formula is off by a hundredth.
CLOSE = 1e-5


def tiny(**changes: Any) -> dict[str, Any]:
    return {**registry.get("t5-small").preset.values(tiny=True), **changes}


def drawn(values: Mapping[str, Any]) -> tuple[EncoderDecoderModel, dict[str, Tensor]]:
    """A model and the published tensors it was loaded from, every one of them random."""
    config = FAMILY.config_from(HFConfig(values, "config.json"))
    model = FAMILY.build(config, device="meta")
    assert isinstance(model, EncoderDecoderModel)
    table = list(FAMILY.weight_map(config))
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, meta in original_layout(model, table).items():
        spread, centre = (meta.shape[-1] ** -0.5, 0.0) if meta.ndim == 2 else (0.3, 1.0)
        tensors[name] = centre + spread * torch.randn(meta.shape, generator=generator)
    load_weights(model, table, tensors)
    return model, tensors


def encode(model: EncoderDecoderModel, source: Tensor, rows: int | None = None) -> dict[str, Tensor]:
    count = torch.tensor([source.shape[1] if rows is None else rows], dtype=torch.int32)
    with torch.no_grad():
        return model.entry("encode", 0)({"source_tokens": source, "encoder_rows": count})


def decode(model: EncoderDecoderModel, made: Mapping[str, Tensor], tokens: list[int], rows: int) -> Tensor:
    """Logits ``[T, V]``, one token at a time through the cache."""
    state = {**model.empty_cache(32), **made, "encoder_rows": torch.tensor([rows], dtype=torch.int32)}
    logits = []
    for position, token in enumerate(tokens):
        state |= {"tokens": torch.tensor([[token]]), "input_pos": torch.tensor([position])}
        with torch.no_grad():
            state |= model.entry("decode", 32)(state)
        logits.append(state["logits"][0, 0])
    return torch.stack(logits)


def both(values: Mapping[str, Any], length: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Encoder rows and logits, ours and the original's, for a random source and ten decoder tokens."""
    from transformers import T5Config, T5ForConditionalGeneration

    model, tensors = drawn(values)
    original = T5ForConditionalGeneration(T5Config(**values)).eval()
    unplaced = original.load_state_dict(tensors, strict=False)
    assert not unplaced.unexpected_keys
    original.tie_weights()
    generator = torch.Generator().manual_seed(1)
    source = torch.randint(values["vocab_size"], (1, length), generator=generator)
    tokens = [0, *torch.randint(values["vocab_size"], (9,), generator=generator).tolist()]
    made = encode(model, source)
    ours = made["encoded"][0], decode(model, made, tokens, length)
    with torch.no_grad():
        output = original(input_ids=source, decoder_input_ids=torch.tensor([tokens]))
    return ours, (output.encoder_last_hidden_state[0], output.logits[0])


def distance(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    assert float(theirs.std()) > 0.01
    return float((ours - theirs).norm() / theirs.norm())


VARIANTS = {
    "small": tiny(),
    "base": registry.get("t5-base").preset.values(tiny=True),
    "one head": tiny(num_heads=1),
    "shallow decoder": tiny(num_decoder_layers=1),
    "published buckets": tiny(relative_attention_num_buckets=32, relative_attention_max_distance=128),
    "eps": tiny(layer_norm_epsilon=0.1),
}


@pytest.mark.parametrize("variant", list(VARIANTS))
@pytest.mark.parametrize("length", [1, 7, 40])
def test_numbers_are_the_originals(variant: str, length: int) -> None:
    """Sources shorter and longer than the buckets tell apart."""
    (rows, logits), (their_rows, their_logits) = both(VARIANTS[variant], length)
    assert distance(rows, their_rows) < CLOSE
    assert distance(logits, their_logits) < CLOSE


def test_padding_changes_nothing_visible() -> None:
    """A source in a longer signature: the same rows in front, the same logits."""
    model, _ = drawn(tiny())
    source = torch.randint(320, (1, 11), generator=torch.Generator().manual_seed(2))
    padded = torch.cat([source, torch.full((1, 9), 5)], 1)
    exact, roomy = encode(model, source), encode(model, padded, rows=11)
    assert distance(roomy["encoded"][0, :11], exact["encoded"][0]) < CLOSE
    tokens = [0, 9, 8, 7]
    assert distance(decode(model, roomy, tokens, 11), decode(model, exact, tokens, 11)) < CLOSE


def test_cross_attention_cache_equals_recomputation() -> None:
    """The keys and values that ``encode`` gives are those that each layer would make of the encoder's rows."""
    model, _ = drawn(tiny())
    made = encode(model, torch.randint(320, (1, 11)))
    for i, block in enumerate(model.decoder.blocks):
        with torch.no_grad():
            key, value = block.cross_attention.keys_and_values(made["encoded"])
        assert torch.equal(made[f"cross_k_{i}"], key)
        assert torch.equal(made[f"cross_v_{i}"], value)


def test_source_order_matters_and_the_future_does_not() -> None:
    """The bias tells positions apart in the encoder; a later decoder token changes no earlier logit."""
    model, _ = drawn(tiny())
    source = torch.arange(20, 31)[None]
    made = encode(model, source)
    assert distance(encode(model, source.flip(1))["encoded"].flip(1), made["encoded"]) > 0.01
    first, second = decode(model, made, [0, 5, 6], 11), decode(model, made, [0, 5, 99], 11)
    assert torch.equal(first[:2], second[:2])


def test_copies_of_the_table_must_be_copies() -> None:
    """Files may repeat the table for both stacks and the head; a table that differs is refused by name."""
    values = tiny()
    model, tensors = drawn(values)
    table = list(FAMILY.weight_map(model.config))
    names = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
    unused = {"decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight": torch.zeros(8, 5)}
    copies = {name: tensors["shared.weight"].clone() for name in names}
    load_weights(FAMILY.build(model.config, device="meta"), table, {**tensors, **copies, **unused})
    for name in names:
        changed = {**tensors, name: tensors["shared.weight"] + 1e-6}
        with pytest.raises(CheckpointError, match=f"^{name} differs from shared.weight"):
            load_weights(FAMILY.build(model.config, device="meta"), table, changed)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"feed_forward_proj": "gated-gelu"}, "feed_forward_proj"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings"),
        ({"num_decoder_layers": 4}, "num_decoder_layers"),
        ({"relative_attention_num_buckets": 0}, "relative_attention_num_buckets"),
        ({"decoder_start_token_id": -1}, "decoder_start_token_id"),
        ({"mystery": 1}, "mystery"),
    ],
)
def test_what_would_change_the_maths_is_refused(change: dict[str, Any], named: str) -> None:
    """By the key's name."""
    with pytest.raises(ConfigError, match=named):
        FAMILY.config_from(HFConfig(tiny(**change), "config.json"))
