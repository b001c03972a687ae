"""``parity cache list`` and ``parity cache clear``."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

from parity.artifacts.cache import SIZE, ArtifactCache

if TYPE_CHECKING:
    from rich.console import Console

_DAY = 86400.0
_UNITS = ((_DAY, "days"), (3600.0, "hours"), (60.0, "minutes"))


def render_list(cache: ArtifactCache, console: Console) -> None:
    """A row for every entry, the one used last first, and how much of the bound is taken."""
    from rich.table import Table
    from rich.text import Text

    entries, now = cache.entries(), time.time()
    if entries:
        table = Table()
        table.add_column("what", overflow="fold")
        for heading in ("MB", "made", "last used"):
            table.add_column(heading, justify="right", no_wrap=True)
        for entry in entries:
            what = entry.manifest.what if entry.manifest else f"{entry.key} (damaged)"
            made = ago(now - entry.manifest.made) if entry.manifest else "-"
            table.add_row(Text(what), f"{entry.size / 1e6:,.1f}", made, ago(now - entry.used))
        console.print(table)
    total = sum(entry.size for entry in entries)
    bound = f"at most {cache.bound / 1e9:,.1f} GB" if cache.bound else f"{SIZE}=0: nothing is taken or kept"
    said = f"{counted(len(entries))}, {total / 1e9:,.3f} GB of {bound} in {cache.folder}"
    console.print(said, markup=False, highlight=False, soft_wrap=True)


def clear(cache: ArtifactCache, older_than: float | None) -> str:
    """Remove all entries, or those not used for ``older_than`` days, and say how many.

    Raises:
        UsageError, OSError: the folder cannot be written.
    """
    removed = cache.clear(math.inf if older_than is None else time.time() - older_than * _DAY)
    return f"removed {counted(len(removed))}, {sum(entry.size for entry in removed) / 1e9:,.3f} GB, from {cache.folder}"


def counted(number: int) -> str:
    """``1 file``, ``2 files``."""
    return f"{number} file{'' if number == 1 else 's'}"


def ago(seconds: float) -> str:
    """In the largest unit that it is one of: ``3.2 hours ago``."""
    size, unit = next(((size, unit) for size, unit in _UNITS if seconds >= size), (1.0, "seconds"))
    return f"{max(seconds, 0.0) / size:.1f} {unit} ago"
