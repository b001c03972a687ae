"""Results that survive being cut off anywhere: JSON lines, a header first, then one line for each thing measured."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Beside the benchmarks, so that the pages can be written again without measuring.
FOLDER = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Lines:
    """``header`` says what is measured: a file is only ever continued by the same, whatever the ``environment``."""

    path: Path
    header: Mapping[str, Any]

    def open(self) -> list[dict[str, Any]]:
        """What is there already. Makes the file, or takes off a last line that was not written to its end.

        Raises:
            SystemExit: the file is of something else.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        written = self.path.read_bytes() if self.path.exists() else b""
        whole = written[: written.rfind(b"\n") + 1]
        if not whole:
            self.path.write_text(json.dumps(dict(self.header)) + "\n", encoding="utf-8")
            return []
        if whole != written:
            os.truncate(self.path, len(whole))
        header, lines = read(self.path)
        asked = json.loads(json.dumps({key: value for key, value in self.header.items() if key != "environment"}))
        if different := [key for key in asked if header.get(key) != asked[key]]:
            raise SystemExit(
                f"{self.path} was begun with {different[0]} {header.get(different[0])}, not {asked[different[0]]}; "
                "move it away to begin anew"
            )
        return lines

    def append(self, line: Mapping[str, Any]) -> None:
        """One write at the end of the file, whoever else writes there."""
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        try:
            os.write(file, (json.dumps(dict(line)) + "\n").encode())
        finally:
            os.close(file)


def read(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The header and what was measured. A last line that is still being written does not count."""
    written = path.read_text(encoding="utf-8")
    header, *lines = [json.loads(line) for line in written[: written.rfind("\n") + 1].splitlines()]
    return header, lines
