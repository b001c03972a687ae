"""The pages say what the code does."""

import re
import runpy
from pathlib import Path

import pytest

from models import registry

ROOT = Path(__file__).parents[1]


def test_limits_page_is_current() -> None:
    """docs/limits.md is what tools/write_limits.py writes today."""
    document = runpy.run_path(str(ROOT / "tools" / "write_limits.py"))["document"]()
    assert (ROOT / "docs" / "limits.md").read_text(encoding="utf-8") == document


@pytest.mark.parametrize("kind", ["decoder-only", "encoder-decoder", "vision-language"])
def test_drawn_signatures_are_current(kind: str) -> None:
    """docs/signatures are what tools/draw_signatures.py draws today."""
    tool = runpy.run_path(str(ROOT / "tools" / "draw_signatures.py"))
    drawn = (ROOT / "docs" / "signatures" / f"{kind}.svg").read_text(encoding="utf-8")
    assert tool["draw"](*tool["KINDS"][kind]) == drawn


@pytest.mark.parametrize("page", sorted(ROOT.glob("*.md")) + sorted((ROOT / "docs").glob("*.md")), ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link of a page names a file."""
    links = re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_readme_names_every_command() -> None:
    """Nobody should have to find a command by accident."""
    from parity.cli import app

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for command in app.registered_commands:
        name = command.name or command.callback.__name__
        assert f"parity {name}" in readme


def test_recordings_of_every_preset_the_project_will_have_fit_in_10_mb() -> None:
    """31 presets are planned; today's average must leave room for them."""
    sizes = [path.stat().st_size for path in (ROOT / "golden").glob("*/tiny/*.*")]
    presets = len(list(registry.models()))
    assert len(sizes) == 2 * presets
    assert sum(sizes) / presets * 31 < 10_000_000
