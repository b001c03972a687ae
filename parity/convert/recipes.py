"""Quantization recipes: this project's six names, the AI Edge Quantizer's own names, or a JSON file."""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from parity.errors import UsageError


@dataclass(frozen=True)
class Recipe:
    """A recipe by name. ``source`` is the AI Edge Quantizer's name or a JSON path; ``suffix`` goes into file names.

    ``encoder`` is the recipe of what only encoders read, where that is another one.
    """

    name: str
    source: str
    suffix: str
    encoder: Recipe | None = None


_NAMED = (
    Recipe("dynamic_int8", "dynamic_wi8_afp32", "q8"),
    Recipe("weight_only_int8", "weight_only_wi8_afp32", "wo8"),
    Recipe("fp16", "fp16", "fp16"),
    Recipe("dynamic_int4_block32", "dynamic_wi4b32_afp32", "q4_block32"),
    Recipe("dynamic_int4_block128", "dynamic_int4_block128", "q4_block128"),
    Recipe("dynamic_int4", "dynamic_wi4c_afp32", "q4"),
)
RECIPES = {recipe.name: recipe for recipe in _NAMED}
DEFAULT_RECIPE = "dynamic_int8"


def get_recipe(name: str) -> Recipe:
    """The recipe a person means.

    Raises:
        UsageError: no such name and no such file.
    """
    if name in RECIPES:
        return RECIPES[name]
    if name.endswith(".json"):
        path = Path(name)
        if not path.is_file():
            raise UsageError(f"{name} is not a file; --recipe takes {', '.join(RECIPES)}, or a recipe's JSON file")
        if path.stem in (*RECIPES, "original64", "original", "reauthored", "float", "golden"):
            raise UsageError(f"{name} is named like a rung or recipe that is not it; give the file another name")
        return Recipe(path.stem, str(path.resolve()), path.stem)
    from ai_edge_quantizer import recipe as library

    if name.startswith(("dynamic_", "weight_only_")) and callable(getattr(library, name, None)):
        return Recipe(name, name, name)
    if name.startswith("static_"):
        raise UsageError(f"{name} needs calibration data, which is not supported; use a dynamic or weight-only recipe")
    near = difflib.get_close_matches(name, [*RECIPES, *dir(library)], n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(RECIPES)}"
    raise UsageError(f"no recipe is called {name!r}; {hint}")


def with_encoder(recipe: Recipe, encoder: str | None) -> Recipe:
    """The recipe with another one for what only encoders read."""
    if encoder is None:
        return recipe
    found = get_recipe(encoder)
    return replace(recipe, encoder=found, suffix=f"{recipe.suffix}_encoder_{found.suffix}")


def entries(recipe: Recipe) -> list[dict[str, Any]]:
    """The recipe as the list of rules that the AI Edge Quantizer loads."""
    from ai_edge_quantizer import recipe as library

    if recipe.source == "fp16":
        matrices = ("FULLY_CONNECTED", "EMBEDDING_LOOKUP", "CONV_2D", "DEPTHWISE_CONV_2D")
        return [_rule(operation, 16, "FLOAT") for operation in matrices]
    if recipe.source == "dynamic_int4_block128":
        # The library has no ready-made name for blocks of 128.
        return [_rule("*", 4, "INT", "BLOCKWISE_128", dynamic=True)]
    if recipe.source.endswith(".json"):
        try:
            loaded = json.loads(Path(recipe.source).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise UsageError(f"{recipe.source} is not a recipe ({error}); write a list of rules") from None
        if not isinstance(loaded, list):
            raise UsageError(f"{recipe.source} is not a recipe; it holds no list of rules")
        return loaded
    found: list[dict[str, Any]] = getattr(library, recipe.source)()
    return found


def weight_bits(recipe: Recipe) -> int:
    """The smallest weight precision that any rule of the recipe asks for, in bits."""
    configs = (rule.get("op_config", {}).get("weight_tensor_config", {}) for rule in entries(recipe))
    return min((int(config["num_bits"]) for config in configs if "num_bits" in config), default=32)


def _rule(
    operation: str, bits: int, dtype: str, granularity: str = "TENSORWISE", *, dynamic: bool = False
) -> dict[str, Any]:
    return {
        "regex": ".*",
        "operation": operation,
        "algorithm_key": "min_max_uniform_quantize" if dtype == "INT" else "float_casting",
        "op_config": {
            "weight_tensor_config": {
                "num_bits": bits,
                "symmetric": True,
                "granularity": granularity,
                "dtype": dtype,
            },
            "compute_precision": "INTEGER" if dynamic else "FLOAT",
            "explicit_dequantize": not dynamic,
            "skip_checks": False,
            "min_weight_elements": 0,
        },
    }
