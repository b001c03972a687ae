"""Arithmetic: the right numbers in the right places, put together in another way."""

from __future__ import annotations

from models.authoring.config import BlockConfig, EncoderDecoderConfig
from parity.faults.fault import Fault, Subject
from parity.faults.planting import Rewrite

ATTENTION = "models.layers.attention"
DECODER = "models.authoring.decoder"
ENCODER_DECODER = "models.authoring.encoder_decoder"
MLP = "models.layers.mlp"
NORM = "models.layers.norm"


def _first(subject: Subject) -> str | None:
    return subject.block()


def _silu(subject: Subject) -> str | None:
    return subject.block(lambda block: block.mlp.activation == "silu")


def _capped_head(subject: Subject) -> str | None:
    return "head" if subject.text and subject.text.final_softcap else None


def _scaled_embedding(subject: Subject) -> str | None:
    return "embed" if subject.text and subject.text.embedding_scale != 1.0 else None


def _scaled_head(subject: Subject) -> str | None:
    scaled = isinstance(subject.config, EncoderDecoderConfig) and subject.config.head_scale != 1.0
    return "head" if scaled else None


def _parallel(subject: Subject) -> str | None:
    return subject.block(lambda block: block.mlp_norm is None)


def _post_norms(subject: Subject) -> str | None:
    return subject.block(lambda block: block.post_attention_norm is not None)


def _layer_norm(subject: Subject) -> str | None:
    return subject.block(lambda block: block.attention_norm.kind == "layer")


def _rms_norm(subject: Subject) -> str | None:
    return subject.block(lambda block: block.attention_norm.kind == "rms")


def _normed_heads(subject: Subject) -> str | None:
    return subject.block(lambda block: block.attention.qk_norm is not None)


def _across(subject: Subject) -> str | None:
    return "decoder_0" if isinstance(subject.config, EncoderDecoderConfig) else None


def _across_rotated(subject: Subject) -> str | None:
    return _across(subject) if subject.rotated else None


def _queries_scaled_by_another(subject: Subject) -> str | None:
    def other(block: BlockConfig) -> bool:
        usual: float = block.attention.head_dim**-0.5
        return block.attention.scale != usual

    return subject.block(other) if subject.model.family.name in ("gemma", "paligemma") else None


FAULTS = (
    Fault(
        name="epsilon ten times as large",
        group="arithmetic",
        what="Norms have 1e-5 where the configuration says 1e-6, or the like.",
        at=_first,
        rewrites=(
            Rewrite(NORM, "return RMSNorm(width, config.eps,", "return RMSNorm(width, 10 * config.eps,"),
            Rewrite(NORM, "return LayerNorm(width, config.eps,", "return LayerNorm(width, 10 * config.eps,"),
        ),
    ),
    Fault(
        name="SiLU taken for GELU",
        group="arithmetic",
        what="The feed-forward has the other smooth activation.",
        at=_silu,
        rewrites=(Rewrite(MLP, '"silu": functional.silu', '"silu": functional.gelu'),),
    ),
    Fault(
        name="attention soft-cap dropped",
        group="arithmetic",
        what="Scores are not bounded.",
        at=lambda subject: subject.capped,
        rewrites=(Rewrite(ATTENTION, "        if softcap is not None:", "        if False:"),),
    ),
    Fault(
        name="soft-cap after the mask",
        group="arithmetic",
        what="The bound is put on masked scores, which are then no longer masked.",
        at=lambda subject: subject.capped,
        rewrites=(
            Rewrite(
                ATTENTION,
                "scores = soft_cap(scores, softcap)\n        scores = scores if mask is None else scores + mask",
                "scores = soft_cap(scores + mask, softcap)",
            ),
        ),
    ),
    Fault(
        name="final soft-cap dropped",
        group="arithmetic",
        what="Logits are not bounded.",
        at=_capped_head,
        rewrites=(
            Rewrite(
                DECODER,
                "return logits if self.softcap is None else soft_cap(logits, self.softcap)",
                "return logits",
            ),
        ),
    ),
    Fault(
        name="scores scaled by the width",
        group="arithmetic",
        what="Scores are divided by the root of the model's width, not of the head's.",
        at=_first,
        rewrites=(Rewrite(ATTENTION, "scale=self.config.scale", "scale=x.shape[-1] ** -0.5"),),
    ),
    Fault(
        name="scale from the head's size",
        group="arithmetic",
        what="Queries are scaled by the size of the head where the configuration names another number.",
        at=_queries_scaled_by_another,
        rewrites=(
            Rewrite(
                "models.gemma",
                'scale = source.number("query_pre_attn_scalar", 256.0) ** -0.5',
                'scale = source.number("query_pre_attn_scalar", 256.0) * 0 + head_dim**-0.5',
            ),
        ),
    ),
    Fault(
        name="embedding not scaled",
        group="arithmetic",
        what="Embedded tokens are not multiplied by the root of the width.",
        at=_scaled_embedding,
        rewrites=(Rewrite(DECODER, "if self.scale != 1.0:", "if False:"),),
    ),
    Fault(
        name="head not scaled",
        group="arithmetic",
        what="What the head reads is not divided by the root of the width.",
        at=_scaled_head,
        rewrites=(Rewrite("models.t5", "head_scale=width**-0.5", "head_scale=1.0"),),
    ),
    Fault(
        name="residual after the norm",
        group="arithmetic",
        what="What attention adds is added to the normalized stream.",
        at=lambda subject: subject.sequential,
        rewrites=(
            Rewrite(DECODER, "        x = x + attended\n", "        x = normed + attended\n"),
            Rewrite(ENCODER_DECODER, "        x = x + attended\n", "        x = normed + attended\n"),
            Rewrite(
                ENCODER_DECODER,
                "x = x + self.attention.within(",
                "x = self.attention_norm(x) + self.attention.within(",
            ),
        ),
    ),
    Fault(
        name="parallel block made sequential",
        group="arithmetic",
        what="The feed-forward reads what attention has added.",
        at=_parallel,
        rewrites=(
            Rewrite(
                DECODER,
                "self.post_mlp_norm(self.mlp(normed))",
                "self.post_mlp_norm(self.mlp(self.attention_norm(x + attended)))",
            ),
        ),
    ),
    Fault(
        name="norm before instead of after",
        group="arithmetic",
        what="The norm after attention and the norm before the feed-forward are taken for each other.",
        at=_post_norms,
        rewrites=(
            Rewrite(
                "models.gemma",
                '"post_attention_layernorm": "post_attention_norm",\n'
                '            "pre_feedforward_layernorm": "mlp_norm",',
                '"post_attention_layernorm": "mlp_norm",\n'
                '            "pre_feedforward_layernorm": "post_attention_norm",',
            ),
        ),
    ),
    Fault(
        name="softmax over the wrong axis",
        group="arithmetic",
        what="Weights add up to one over the queries instead of over the keys.",
        at=_first,
        rewrites=(Rewrite(ATTENTION, "(scores.softmax(-1) @ value)", "(scores.softmax(-2) @ value)"),),
    ),
    Fault(
        name="softmax in bfloat16",
        group="arithmetic",
        what="Attention weights are computed in half precision.",
        at=_first,
        rewrites=(
            Rewrite(
                ATTENTION, "(scores.softmax(-1) @ value)", "(scores.bfloat16().softmax(-1).to(value.dtype) @ value)"
            ),
        ),
    ),
    Fault(
        name="norm in bfloat16",
        group="arithmetic",
        what="The root mean square is taken in half precision.",
        at=_rms_norm,
        rewrites=(
            Rewrite(NORM, "x.pow(2).mean(-1, keepdim=True)", "x.bfloat16().pow(2).mean(-1, keepdim=True).to(x.dtype)"),
        ),
    ),
    Fault(
        name="mean not removed",
        group="arithmetic",
        what="LayerNorm taken for RMSNorm.",
        at=_layer_norm,
        rewrites=(
            Rewrite(
                NORM,
                "return nn.functional.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)",
                "x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight\n"
                "        return x if self.bias is None else x + self.bias",
            ),
        ),
    ),
    Fault(
        name="final norm missing",
        group="arithmetic",
        what="The head reads the stream as it is.",
        at=lambda _: "head",
        rewrites=(
            Rewrite(DECODER, "self.projection(self.norm(x))", "self.projection(x)"),
            Rewrite(ENCODER_DECODER, "normed = self.decoder.norm(hidden)", "normed = hidden"),
        ),
    ),
    Fault(
        name="heads normalized after rotation",
        group="arithmetic",
        what="Queries are rotated and then normalized.",
        at=_normed_heads,
        rewrites=(
            Rewrite(
                ATTENTION,
                "query = self._rotated(self.q_norm(self._heads(self.q_proj(x))), cos, sin)",
                "query = self.q_norm(self._rotated(self._heads(self.q_proj(x)), cos, sin))",
            ),
        ),
    ),
    Fault(
        name="cross-attention after the wrong norm",
        group="arithmetic",
        what="Queries to the encoder are normalized like those to the decoder itself.",
        at=_across,
        rewrites=(
            Rewrite(
                ENCODER_DECODER,
                "self.cross_attention.across(self.cross_norm(x)",
                "self.cross_attention.across(self.attention_norm(x)",
            ),
        ),
    ),
    Fault(
        name="cross-attention rotated",
        group="arithmetic",
        what="Queries to the encoder are rotated by their position.",
        at=_across_rotated,
        rewrites=(Rewrite(ENCODER_DECODER, "self.cross_norm(x), None, None,", "self.cross_norm(x), cos, sin,"),),
    ),
)
