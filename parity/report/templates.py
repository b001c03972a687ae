"""Templates, those beside this file and others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Template


def template(name: str, folder: Path = Path(__file__).parent) -> Template:
    """The template ``NAME.jinja`` of a folder; here, unless told otherwise.

    It escapes what it is given for HTML and XML; what it is not given is an error.
    """
    import jinja2

    environment = jinja2.Environment(
        autoescape=True,
        loader=jinja2.FileSystemLoader(folder),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(f"{name}.jinja")
