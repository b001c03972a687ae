"""Checkpoints that are not in the published layout: what their folder lacks is added, and the original gets a copy.

Kaggle has Gemma as one state dict and a tokenizer model. The re-authored model reads it as it is, with the preset's
configuration where the folder has none. The original, which reads neither the format nor the names, is given the same
weights in the published layout, through the family's two weight maps.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from models.authoring.checkpoint import SINGLE, STATE_DICT, weight_files
from models.authoring.family import Preset
from parity import isolated
from parity.errors import WeightsError
from parity.files import whole_folder
from parity.inputs import tokenizer_files
from parity.progress import Reporter

#: What a checkpoint says of its model and of how to generate with it; the second may be missing.
CONFIGURATION = ("config.json", "generation_config.json")
#: A tokenizer model says nothing of the token that begins a text; gemma_pytorch's tokenizer always adds it.
_TOKENIZER_CONFIG = {"add_bos_token": True}


def completed(folder: Path, preset: Preset, say: Callable[[str], None] | None = None) -> Path:
    """``folder``; or, if it has a state dict and lacks what goes with it, a folder of links to it with that added.

    A ``config.json`` with a ``model_type`` counts, whatever it says; without one, the preset's published values do.

    Raises:
        CheckpointError: it lacks something, and its weights too.
        UsageError, ParityError: the folder of links cannot be written.
    """
    added = {}
    if not _has_config(folder):
        added["config.json"] = json.dumps(dict(preset.config), indent=1)
    tokenizer = {path.name: path for path in tokenizer_files(folder)}
    if "tokenizer.model" in tokenizer and not tokenizer.keys() & {"tokenizer.json", "tokenizer_config.json"}:
        added["tokenizer_config.json"] = json.dumps(_TOKENIZER_CONFIG)
    if not added or any(path.suffix != STATE_DICT for path in weight_files(folder)):
        return folder
    if say and "config.json" in added:
        say(f"{folder} has no configuration of transformers; it is taken to be {preset.name}")
    beside = [path for name in CONFIGURATION if (path := folder / name).is_file()]
    links = {path.name: path for path in [*weight_files(folder), *tokenizer.values(), *beside]}
    return _linked({name: str(path) for name, path in links.items() if name not in added}, added, folder.name)


def with_tokenizer(folder: Path, tokenizer: Path) -> Path:
    """A folder of links to everything in ``folder`` and to the tokenizer in another one.

    Raises:
        UsageError, ParityError: it cannot be written.
    """
    return _linked({path.name: str(path) for path in [*tokenizer_files(tokenizer), *folder.iterdir()]}, {}, folder.name)


def _has_config(folder: Path) -> bool:
    """Whether there is a ``config.json`` to go by. A damaged one is: its reader says what is wrong with it."""
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return False
    except (OSError, ValueError, RecursionError):
        return True
    return not isinstance(values, dict) or "model_type" in values


def _linked(links: dict[str, str], added: dict[str, str], name: str) -> Path:
    """A folder in the user's cache with these links and files; its name says what is in it, so it is made once."""
    import platformdirs

    identity = hashlib.sha256(json.dumps([links, added], sort_keys=True).encode()).hexdigest()[:16]
    folder = platformdirs.user_cache_path("parity", appauthor=False) / "weights" / "linked" / f"{name}-{identity}"
    if not folder.is_dir():
        with whole_folder(folder) as temporary:
            for link, target in links.items():
                (temporary / link).symlink_to(target)
            for file, text in added.items():
                (temporary / file).write_text(text, encoding="utf-8")
    return folder


@contextmanager
def published(family: str, folder: Path, scratch: Path, reporter: Reporter) -> Iterator[Path]:
    """The checkpoint as its original reads it: ``folder``, or a copy in ``scratch`` that is gone after the block.

    Raises:
        ModelError: the checkpoint does not fit its configuration.
        WeightsError: no room for the copy.
    """
    if all(path.suffix != STATE_DICT for path in weight_files(folder)):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="published-", dir=scratch) as made:
        with reporter.step("rewriting the weights for the original") as progress:
            isolated.run("rewriting the weights", partial(_rewrite, family, folder, Path(made)), progress)
        yield Path(made)


def _rewrite(family: str, folder: Path, destination: Path, progress: isolated.Progress) -> None:
    """Load as the re-authored model does, and write what the published weight map would read to the same parameters."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    from models import registry
    from models.authoring.weight_map import original_layout

    progress(0, 1)
    found = registry.family(family)
    model = found.load(folder)
    layout = original_layout(model, found.weight_map(model.config))
    try:
        save_file(layout, destination / SINGLE, metadata={"format": "pt"})  # from where the parameters are, uncopied
        for name in CONFIGURATION:
            if (folder / name).is_file():
                shutil.copyfile(folder / name, destination / name)
    except (OSError, SafetensorError) as error:
        needed = sum(tensor.nbytes for tensor in layout.values())
        raise WeightsError(
            f"{destination} cannot take {needed / 1e9:.1f} GB for the original ({error}); make room, or set TMPDIR"
        ) from None
