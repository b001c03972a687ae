"""The tokens that end a text, as a checkpoint folder names them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from models.authoring.hf_config import HFConfig
from models.errors import ConfigError


def end_tokens(folder: Path) -> frozenset[int]:
    """The ids that end generation; none if the folder names none.

    As in transformers, ``generation_config.json`` decides alone where there is one, even by naming none. Otherwise
    ``config.json`` does, and for a model made of several the object of its text model where the outer one is silent.

    Raises:
        ConfigError: a file cannot be read, or names something that is no token id.
    """
    path = folder / "generation_config.json"
    if path.is_file():
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise ConfigError(f"{path} cannot be read ({error}); fetch the file again") from None
        if not isinstance(values, dict):
            raise ConfigError(f"{path} is no JSON object; fetch the file again")
        return HFConfig(values, str(path)).token_ids("eos_token_id")
    config = HFConfig.load(folder)
    if config.has("eos_token_id") or not config.has("text_config"):
        return config.token_ids("eos_token_id")
    text: dict[str, Any] = config.take("text_config", dict)
    return HFConfig(text, f"{config.source}: text_config").token_ids("eos_token_id")
