"""What a tower makes of pictures and a stem of sounds."""

from __future__ import annotations

from collections.abc import Callable

from models.authoring.config import EncoderDecoderConfig, SiglipConfig, WindowedVisionConfig
from parity.faults.fault import Fault, Subject
from parity.faults.planting import Rewrite

ENCODER_DECODER = "models.authoring.encoder_decoder"
MOONSHINE = "models.moonshine"
PALIGEMMA = "models.paligemma"
QWEN_VL = "models.qwen_vl"
SESSION = "models.authoring.session"
VISION = "models.layers.vision"
WINDOWED = "models.authoring.windowed_vision"


def _hearing(stage: str) -> Callable[[Subject], str | None]:
    def at(subject: Subject) -> str | None:
        hears = isinstance(subject.config, EncoderDecoderConfig) and subject.config.stem
        return stage if hears else None

    return at


def _siglip(stage: str) -> Callable[[Subject], str | None]:
    return lambda subject: stage if isinstance(subject.vision, SiglipConfig) else None


def _windowed(stage: str) -> Callable[[Subject], str | None]:
    return lambda subject: stage if isinstance(subject.vision, WindowedVisionConfig) else None


FAULTS = (
    Fault(
        name="tanh GELU in the stem",
        group="arithmetic",
        what="The convolutions over samples have the approximation of GELU.",
        at=_hearing("stem"),
        rewrites=(
            Rewrite(
                "models.layers.audio",
                "functional.gelu(convolution(x))",
                'functional.gelu(convolution(x), approximate="tanh")',
            ),
        ),
    ),
    Fault(
        name="channels normalized alone",
        group="arithmetic",
        what="After the first convolution each channel is normalized by itself.",
        at=_hearing("stem"),
        rewrites=(
            Rewrite(
                "models.layers.audio",
                "x.sum(2, keepdim=True).sum(1, keepdim=True)",
                "x.sum(2, keepdim=True) * x.shape[1]",
            ),
        ),
    ),
    Fault(
        name="whole head rotated",
        group="positions",
        what="All channels of a head are rotated although only a part should be.",
        at=_hearing("encoder_0"),
        rewrites=(Rewrite(MOONSHINE, "interleaved=True", "interleaved=True, rotary_dim=head_dim"),),
    ),
    Fault(
        name="scale of the padded head",
        group="arithmetic",
        what="Scores are divided by the root of the head's size rounded up, as the original pads it.",
        at=_hearing("encoder_0"),
        rewrites=(Rewrite(MOONSHINE, "scale=head_dim**-0.5", "scale=(-(-head_dim // 8) * 8) ** -0.5"),),
    ),
    Fault(
        name="gate first",
        group="weights",
        what="The first half of the fused feed-forward is taken for the one that is activated.",
        at=_hearing("decoder_0"),
        rewrites=(
            Rewrite(
                MOONSHINE,
                '(f"{target}.mlp.up_proj.{leaf}", f"{target}.mlp.gate_proj.{leaf}")',
                '(f"{target}.mlp.gate_proj.{leaf}", f"{target}.mlp.up_proj.{leaf}")',
            ),
        ),
    ),
    Fault(
        name="decoder's norms in the encoder's order",
        group="weights",
        what="The same names mean other norms in the decoder than in the encoder.",
        at=_hearing("decoder_0"),
        rewrites=(
            Rewrite(
                MOONSHINE,
                '"post_attention_layernorm": "cross_norm",\n        "final_layernorm": "mlp_norm",',
                '"post_attention_layernorm": "mlp_norm",\n        "final_layernorm": "cross_norm",',
            ),
        ),
    ),
    Fault(
        name="patches column by column",
        group="positions",
        what="The patches of a picture come in the wrong order.",
        at=_siglip("stem"),
        rewrites=(Rewrite(VISION, "planes.permute(0, 2, 4, 1, 3, 5)", "planes.permute(0, 4, 2, 1, 3, 5)"),),
    ),
    Fault(
        name="colours innermost",
        group="weights",
        what="The values of a patch come in another order than its kernel was flattened in.",
        at=_siglip("stem"),
        rewrites=(Rewrite(VISION, "planes.permute(0, 2, 4, 1, 3, 5)", "planes.permute(0, 2, 4, 3, 5, 1)"),),
    ),
    Fault(
        name="tower's GELU exact",
        group="arithmetic",
        what="The tower has the error function where its approximation belongs.",
        at=_siglip("vision_0"),
        rewrites=(
            Rewrite(PALIGEMMA, 'activation=source.activation("hidden_act", "gelu_pytorch_tanh")', 'activation="gelu"'),
        ),
    ),
    Fault(
        name="tower's scores not scaled",
        group="arithmetic",
        what="The tower's scores are taken as they are.",
        at=_siglip("vision_0"),
        rewrites=(Rewrite(PALIGEMMA, "scale=head_dim**-0.5", "scale=1.0"),),
    ),
    Fault(
        name="pictures scaled like words",
        group="arithmetic",
        what="The rows of a picture are multiplied by the factor that is for embedded tokens.",
        at=_siglip("place"),
        rewrites=(
            Rewrite(
                "models.authoring.vision_language",
                "placed = encoded[:, rows.clamp(min=0)]",
                "placed = encoded[:, rows.clamp(min=0)] * encoded.shape[-1] ** 0.5",
            ),
        ),
    ),
    Fault(
        name="rows of pictures back to front",
        group="positions",
        what="The rows of a picture stand in the prompt in the wrong order.",
        at=_siglip("place"),
        rewrites=(
            Rewrite(SESSION, "rows[places] = np.arange(len(places))", "rows[places] = np.arange(len(places))[::-1]"),
        ),
    ),
    Fault(
        name="every block sees the whole picture",
        group="masks and cache",
        what="No block of the tower looks through windows.",
        at=_windowed("vision_0"),
        rewrites=(Rewrite(WINDOWED, "over_all if i in self.config.whole_blocks else in_windows", "over_all"),),
    ),
    Fault(
        name="whole blocks counted from one",
        group="masks and cache",
        what="The blocks that see the whole picture are those before the right ones.",
        at=_windowed("vision_0"),
        rewrites=(Rewrite(WINDOWED, "if i in self.config.whole_blocks", "if i + 1 in self.config.whole_blocks"),),
    ),
    Fault(
        name="windows counted in patches",
        group="masks and cache",
        what="The size of a window is not divided by how many patches become one row.",
        at=_windowed("vision_0"),
        rewrites=(
            Rewrite(
                QWEN_VL, 'source.positive("window_size") // merge // patch', 'source.positive("window_size") // patch'
            ),
        ),
    ),
    Fault(
        name="what fills windows up is seen",
        group="masks and cache",
        what="Windows that the frame cuts off are filled up, and the filling is not masked.",
        at=_windowed("vision_0"),
        rewrites=(Rewrite(WINDOWED, "mask=None if bool(real.all())", "mask=None if True"),),
    ),
    Fault(
        name="rows left in the order of windows",
        group="positions",
        what="The rows that the tower makes are not put back into the order of the picture.",
        at=_windowed("merger"),
        rewrites=(
            Rewrite(
                WINDOWED,
                "torch.argsort(torch.where(order < 0, order.numel(), order))",
                "torch.argsort(torch.where(order < 0, 1, 0), stable=True)",
            ),
        ),
    ),
    Fault(
        name="patches numbered row by row",
        group="positions",
        what="Patches are rotated as if they came row by row, not square by square.",
        at=_windowed("vision_0"),
        rewrites=(Rewrite(WINDOWED, "cells(*grid, config.merge)", "cells(*grid, 1)"),),
    ),
    Fault(
        name="rows and columns of patches swapped",
        group="positions",
        what="Patches are rotated by their column first.",
        at=_windowed("vision_0"),
        rewrites=(
            Rewrite(
                VISION,
                "torch.stack([order // columns, order % columns]",
                "torch.stack([order % columns, order // columns]",
            ),
        ),
    ),
    Fault(
        name="merger with tanh GELU",
        group="arithmetic",
        what="What joins patches has the approximation of GELU.",
        at=_windowed("merger"),
        rewrites=(Rewrite(QWEN_VL, 'activation="gelu"', 'activation="gelu_tanh"'),),
    ),
    Fault(
        name="tower's keys and values swapped",
        group="weights",
        what="The rows of keys and values in the tower's fused tensor are taken for each other.",
        at=_windowed("vision_0"),
        rewrites=(Rewrite(QWEN_VL, 'for letter in "qkv"', 'for letter in "qvk"'),),
    ),
)
