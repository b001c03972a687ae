"""Where a budget comes from: the command line before the project's file before the tiers; nonsense is wrong use."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from parity.budget import budget_of
from parity.cli import main
from parity.compare.budgets import TIERS
from parity.errors import UsageError


def limits(asked: list[str], folder: Path) -> dict[str, float]:
    budget = budget_of(asked, folder)
    assert budget is not None
    return {limit.metric: limit.most for limit in budget.limits}


def write(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


class CommandLine:
    """The real one, in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        monkeypatch.setattr(signal, "signal", lambda *_: None)  # pytest has its own
        self._capsys = capsys

    def refuses(self, *arguments: str) -> str:
        """The one line with which it refuses to be used so."""
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2
        out, err = self._capsys.readouterr()
        (line,) = err.strip().splitlines()
        assert (out, line.startswith("parity: ")) == ("", True)
        return str(line)


@pytest.fixture
def command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(monkeypatch, capsys)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder above which nobody has a budget."""
    write(tmp_path, "pyproject.toml", "[tool.other]\n")
    return tmp_path / "project"


# -- the command line


@pytest.mark.parametrize("tier", TIERS)
def test_a_tier_by_name(tier: str, project: Path) -> None:
    assert budget_of([tier], project) is TIERS[tier]


def test_limits_by_name(project: Path) -> None:
    assert limits(["kl_typical=0.05", "flips=1e-1"], project) == {"kl_typical": 0.05, "flips": 0.1}


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["god"], "did you mean good?"),
        (["zzz"], "there are lossless, good, compact"),
        ([""], "there are lossless, good, compact"),
        (["good", "kl_mean=0.1"], "give one tier, or only METRIC=VALUE"),
        (["good", "compact"], "give one tier, or only METRIC=VALUE"),
        (["kl_mean=0.1", "kl_mean=0.2"], "names kl_mean twice"),
        (["kl_mean=low"], "'low' is no number"),
        (["kl_mean="], "'' is no number"),
        (["=0.1"], "no metric is called ''"),
        (["kl_mean=0.1=0.2"], "'0.1=0.2' is no number"),
        (["kl_mena=0.1"], "did you mean kl_mean?"),
        (["kl_mean=-0.1"], "is no limit"),
        (["kl_mean=nan"], "is no limit"),
        (["kl_mean=inf"], "is no limit"),
        (["cosine=2"], "is no share"),
        (["perplexity_ratio=0.5"], "forbids what is no loss"),
    ],
)
def test_nonsense_on_the_command_line_is_wrong_use(asked: list[str], said: str, command_line: CommandLine) -> None:
    """One line that names it, exit code 2, before anything is run."""
    with pytest.raises(UsageError) as refused:
        budget_of(asked)
    assert said in str(refused.value)
    options = [part for each in asked for part in ("--budget", each)]
    assert said in command_line.refuses("check", "smollm-135m", *options)


# -- the project's file


def test_nothing_is_a_budget_of_nobody(project: Path) -> None:
    """Then every recipe has its tier; a project's file that says nothing of parity is as good as none."""
    assert budget_of([], project) is None
    write(project, "pyproject.toml", "[project]\nname = 'x'\n")
    assert budget_of([], project) is None
    write(project, "pyproject.toml", "[tool.parity]\n")
    assert budget_of([], project) is None
    write(project, "parity.toml", "")
    assert budget_of([], project) is None


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("pyproject.toml", "[tool.parity.budget]\nkl_typical = 0.02\n"),
        ("parity.toml", "[budget]\nkl_typical = 0.02\n"),
        ("parity.toml", "budget = {kl_typical = 0.02}\n"),
    ],
)
def test_a_project_has_its_own(name: str, text: str, project: Path) -> None:
    """From any folder within it; what was asked for goes before it."""
    path = write(project, name, text)
    deep = project / "a" / "b"
    deep.mkdir(parents=True)
    for folder in (project, deep):
        assert limits([], folder) == {"kl_typical": 0.02}
        assert budget_of(["compact"], folder) is TIERS["compact"]
    budget = budget_of([], deep)
    assert budget is not None
    assert budget.name == str(path)


@pytest.mark.parametrize("text", ['[budget]\ntier = "compact"\n', 'budget = "compact"\n'])
def test_a_project_names_a_tier(text: str, project: Path) -> None:
    write(project, "parity.toml", text)
    assert budget_of([], project) is TIERS["compact"]


def test_the_nearest_file_is_the_projects(project: Path) -> None:
    """``parity.toml`` before ``pyproject.toml``; a project without a budget does not inherit that of a folder above."""
    write(project, "pyproject.toml", "[tool.parity.budget]\nkl_typical = 0.02\n")
    write(project, "parity.toml", "[budget]\nkl_typical = 0.03\n")
    assert limits([], project) == {"kl_typical": 0.03}
    inner = write(project / "inner", "pyproject.toml", "[project]\nname = 'inner'\n").parent
    assert budget_of([], inner) is None
    write(inner, "pyproject.toml", "[tool.parity.budget]\nflips = 0.1\n")
    assert limits([], inner) == {"flips": 0.1}


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("pyproject.toml", "[tool.parity\n", "cannot be read"),
        ("parity.toml", "budget = \n", "cannot be read"),
        ("parity.toml", "[budget]\nkl_mean = 0.1\nkl_mean = 0.2\n", "cannot be read"),
        pytest.param("parity.toml", "x = " + "[" * 5000, "cannot be read", id="deep"),
        ("pyproject.toml", "[tool]\nparity = 3\n", "the section of parity is no table"),
        ("pyproject.toml", "[tool.parity]\nbugdet = 3\n", "bugdet means nothing to parity; did you mean budget?"),
        ("parity.toml", "kl_mean = 0.1\n", "kl_mean means nothing to parity; there is budget"),
        ("parity.toml", "budget = 3\n", "budget is no table"),
        ("parity.toml", "[budget]\n", "holds no limit"),
        ("parity.toml", "[budget]\ntier = 'good'\nkl_mean = 0.1\n", "has a tier and limits"),
        ("parity.toml", "[budget]\ntier = 'god'\n", "did you mean good?"),
        ("parity.toml", "[budget]\ntier = 3\n", "no tier is called '3'"),
        ("parity.toml", "[budget]\nkl_maen = 0.1\n", "did you mean kl_mean?"),
        ("parity.toml", "[budget]\nkl_mean = -1\n", "kl_mean = -1 is no limit"),
        ("parity.toml", "[budget]\nkl_mean = nan\n", "kl_mean = nan is no limit"),
        ("parity.toml", "[budget]\nkl_mean = 'low'\n", "kl_mean = low is no limit"),
        ("parity.toml", "[budget]\nkl_mean = true\n", "kl_mean = True is no limit"),
        ("parity.toml", "[budget]\nkl_mean = {most = 0.1}\n", "is no limit"),
    ],
)
def test_what_a_project_cannot_have_meant_is_wrong_use(
    name: str,
    text: str,
    said: str,
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    command_line: CommandLine,
) -> None:
    """One line that names the file, exit code 2, before anything is run."""
    path = write(project, name, text)
    with pytest.raises(UsageError) as refused:
        budget_of([], project)
    assert said in str(refused.value)
    assert str(path) in str(refused.value)
    monkeypatch.chdir(project)
    assert said in command_line.refuses("check", "smollm-135m")
    assert list(project.iterdir()) == [path], "nothing is left behind"


@pytest.mark.parametrize("data", [b"\xff\xfe\x00", b"[budget]\nkl_mean = 0.1 # \xe9\n"])
def test_what_is_no_text_is_wrong_use(data: bytes, project: Path) -> None:
    project.mkdir()
    (project / "parity.toml").write_bytes(data)
    with pytest.raises(UsageError, match="cannot be read"):
        budget_of([], project)
