"""Applying a recipe to a float file, and looking at what came out before anyone ships it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from parity import isolated
from parity.convert.recipes import Recipe, entries
from parity.convert.rounding import Grouping, Rounding
from parity.convert.stored import Weight, bits_of, contents, rounding_of, storage_of, weights_in
from parity.errors import RungError
from parity.files import whole_file

#: The algorithms of the quantizer that store the nearest value there is. Others move weights on purpose.
_ROUNDING = ("min_max_uniform_quantize", "float_casting")
BLOCKS = (256, 128, 64, 32)


@dataclass(frozen=True)
class WeightPrecision:
    """How one weight is stored: ``precision`` such as ``int4 block 32``, ``asked`` when the recipe wanted another.

    ``rounding`` is how what is stored compares with the float weight, unless it is that weight. ``dynamic`` says that
    the recipe has the runtime round what is multiplied with it as well.
    """

    name: str
    precision: str
    asked: str | None = None
    rounding: Rounding | None = None
    dynamic: bool = False

    @property
    def coarser(self) -> bool:
        """Whether it has fewer bits than the recipe wanted."""
        return self.asked is not None and bits_of(self.precision) < bits_of(self.asked)


def quantize(
    source: Path,
    names: Sequence[str],
    recipe: Recipe,
    destination: Path,
    on_progress: isolated.Progress | None = None,
) -> isolated.Finished[list[WeightPrecision]]:
    """Write ``source`` (float) quantized by ``recipe`` to ``destination``; returns how every weight is stored.

    ``names`` are the weights' names in file order, as ``name_weights`` gives them.

    Raises:
        RungError: the quantizer failed, nothing was quantized, or the file holds scales that the runtime refuses.
    """
    job = quantization(source, names, recipe, destination)
    return isolated.run(f"quantizing to {recipe.name}", job, on_progress)


def quantization(
    source: Path, names: Sequence[str], recipe: Recipe, destination: Path, *, part: bool = False
) -> partial[list[WeightPrecision]]:
    """The same as a job, for a process that is there already; of a ``part`` everything may stay as it is."""
    return partial(_quantize, source, names, recipe, destination, part)


def _quantize(
    source: Path,
    names: Sequence[str],
    recipe: Recipe,
    destination: Path,
    part: bool,
    progress: isolated.Progress,
) -> list[WeightPrecision]:
    from ai_edge_quantizer import quantizer

    rules = entries(recipe)
    if recipe.encoder:
        rules = rules + _for_encoders(source, recipe.encoder)
    replaced = _replacements(source, rules)
    try:
        engine = quantizer.Quantizer(contents(source), rules + list(replaced.values()))
        progress(0, 1)
        quantized = engine.quantize().quantized_model
    except (ValueError, RuntimeError, KeyError, TypeError) as error:
        raise RungError(f"{recipe.name} cannot be applied: {' '.join(str(error).split())[:300]}") from error
    if quantized is None:
        raise RungError(f"{recipe.name} produced no file")
    with whole_file(destination) as temporary:
        temporary.write_bytes(quantized)
        found = list(_stored(temporary, source, names, rules))
        if not part:
            require_quantized(recipe, found)
    return found


def require_quantized(recipe: Recipe, found: Iterable[WeightPrecision]) -> None:
    """Refuse a recipe that has done nothing.

    Raises:
        RungError: every weight is as it was.
    """
    if all(weight.precision == "float32" for weight in found):
        raise RungError(f"{recipe.name} left every weight in float32; its rules match nothing in this file")


def _stored(
    path: Path, source: Path, names: Sequence[str], rules: Sequence[dict[str, Any]]
) -> Iterator[WeightPrecision]:
    """How each weight of the file ``path`` is stored, and how that compares with what the float ``source`` has of it.

    Raises:
        RungError: scales that the runtime refuses or flushes.
    """
    pairs = zip(names, weights_in(path), weights_in(source), strict=True)
    for name, weight, exact in pairs:
        storage = storage_of(weight, name)
        asked = _asked(exact, rules)
        differs = asked is not None and not storage.precision.startswith(asked)
        grouping = _grouping(exact, rules)
        rounding = rounding_of(weight, exact, storage, grouping) if grouping else None
        # What stays float is multiplied with floats, whatever the rule says.
        dynamic = storage.kind.startswith("int") and _dynamic(exact, rules)
        yield WeightPrecision(name, storage.precision, asked if differs else None, rounding, dynamic)


def _grouping(weight: Weight, rules: Sequence[dict[str, Any]]) -> Grouping | None:
    """Which values the recipe gives a step of their own; none where it does something else than to round."""
    rule = _rule_for(weight, rules)
    if rule is None or rule["algorithm_key"] not in _ROUNDING:
        return None
    if block := _block_of(rule):
        return Grouping(0, block if weight.width % block == 0 else _smaller(block, weight.width))
    granularity = rule.get("op_config", {}).get("weight_tensor_config", {}).get("granularity", "TENSORWISE")
    channels = {"DEPTHWISE_CONV_2D": len(weight.shape) - 1}.get(weight.operation, 0)
    return Grouping(channels if _text(granularity) == "CHANNELWISE" else None)


def _for_encoders(source: Path, recipe: Recipe) -> list[dict[str, Any]]:
    """The rules of ``recipe`` for the weights that encoders read, and for no others; what it leaves alone is float.

    Raises:
        RungError: the file has no encoder, or one that cannot be told from the rest.
    """
    weights = list(weights_in(source))
    encoders = [weight for weight in weights if weight.subgraph.name.startswith(b"encode")]
    if not encoders:
        raise RungError(f"{recipe.name} is for an encoder, and this model has none; leave --encoder-recipe out")
    elsewhere = {weight.scope for weight in weights} - {weight.scope for weight in encoders}
    if shared := {weight.scope for weight in weights if weight not in encoders} - elsewhere:
        raise RungError(f"{min(shared)} is read by an encoder and by others under one name; use one recipe for both")
    wanted = [(weight, _rule_for(weight, entries(recipe))) for weight in encoders]
    plain = {"operation": "*", "algorithm_key": "no_quantize", "op_config": {}}
    return [_only_for(weight, rule or plain) for weight, rule in wanted]


def _rule_for(weight: Weight, rules: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The rule that the quantizer goes by: the last one that matches."""
    fitting = (
        rule
        for rule in reversed(rules)
        if rule["operation"] in ("*", weight.operation) and re.search(rule["regex"], weight.scope)
    )
    return next(fitting, None)


def _only_for(weight: Weight, rule: Mapping[str, Any]) -> dict[str, Any]:
    """The rule for this weight alone. Where it was for all operators it still is: those that cannot do it are left."""
    return {**rule, "regex": f"^{re.escape(weight.scope)}$"}


def _asked(weight: Weight, rules: Sequence[dict[str, Any]]) -> str | None:
    """What the recipe asks for, as far as ``inspect`` names it: ``int4 block 32``, ``int8``."""
    rule = _rule_for(weight, rules)
    if rule is None or rule["algorithm_key"] == "no_quantize":
        return None
    config = rule["op_config"]["weight_tensor_config"]
    kind = "float" if _text(config["dtype"]) == "FLOAT" else "int"
    block = _block_of(rule)
    return f"{kind}{config['num_bits']}" + (f" block {block}" if block else "")


def _text(value: Any) -> str:
    """A word of a rule, which is text in JSON and a member of an enumeration in the library's own rules."""
    return str(getattr(value, "value", value))


def _dynamic(weight: Weight, rules: Sequence[dict[str, Any]]) -> bool:
    """Whether the recipe has integers multiplied with integers; a lookup multiplies nothing."""
    rule = _rule_for(weight, rules)
    precision = rule.get("op_config", {}).get("compute_precision") if rule else None
    return _text(precision) == "INTEGER" and weight.operation != "EMBEDDING_LOOKUP"


def _replacements(source: Path, rules: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Rules for the weights whose width is no multiple of the recipe's block, by weight name.

    The quantizer refuses such a weight outright. It gets the largest smaller block that divides its width (never less
    accurate than what was asked for), or stays in float32 where none does; either way the report says so. So does a
    table of four bits and an odd width, whose every other row the runtime would read wrongly.
    """
    found: dict[str, dict[str, Any]] = {}
    for weight in weights_in(source):
        rule = _rule_for(weight, rules)
        if rule is None:
            continue
        if weight.operation == "EMBEDDING_LOOKUP" and weight.width % 2 and _bits_of(rule) == 4:
            # The runtime takes every row of such a table to begin with a new byte; the quantizer packs them densely.
            found[weight.scope] = {**_only_for(weight, rule), "algorithm_key": "no_quantize"}
            continue
        block = _block_of(rule)
        if not block or weight.width % block == 0:
            continue
        smaller = _smaller(block, weight.width)
        replacement = _only_for(weight, rule)
        if not smaller:
            replacement["algorithm_key"] = "no_quantize"
        else:
            config = rule["op_config"]
            tensor = {**config["weight_tensor_config"], "granularity": f"BLOCKWISE_{smaller}"}
            tensor.pop("block_size", None)
            replacement["op_config"] = {**config, "weight_tensor_config": tensor}
        found[weight.scope] = replacement
    return found


def _smaller(block: int, width: int) -> int:
    """The largest smaller block that divides the width, 0 where none does."""
    return next((size for size in BLOCKS if size < block and width % size == 0), 0)


def _bits_of(rule: Mapping[str, Any]) -> int:
    """The precision that a rule asks for; 32 where it asks for none."""
    return int(rule.get("op_config", {}).get("weight_tensor_config", {}).get("num_bits", 32))


def _block_of(rule: dict[str, Any]) -> int:
    """The block size a rule asks for, 0 when it is not blockwise."""
    config = rule.get("op_config", {}).get("weight_tensor_config", {})
    granularity = _text(config.get("granularity", ""))
    if granularity.startswith("BLOCKWISE_"):
        return int(granularity.removeprefix("BLOCKWISE_"))
    return int(config.get("block_size", 0))


def summarize(found: list[WeightPrecision]) -> dict[str, Any]:
    """Counts by precision, every weight that did not get what the recipe asked for, and how well weights were rounded.

    ``rounding`` has the worst figures of any weight and names the weights that they are of.
    """
    # Every signature reads the same weights, and so do files of other cache lengths, if they have them alike.
    unique = dict.fromkeys((weight.name, weight.asked, weight.precision) for weight in found)
    counts = Counter(precision for _, _, precision in unique)
    exceptions = [
        {"weight": name, "asked": asked, "precision": precision} for name, asked, precision in unique if asked
    ]
    rounded = [(weight.name, weight.rounding) for weight in found if weight.rounding]
    worst = {
        figure: max((getattr(rounding, figure), name) for name, rounding in rounded)
        for figure in ("steps", "coarseness")
        if rounded
    }
    return {"weights": dict(counts), "exceptions": exceptions, **({"rounding": worst} if worst else {})}
