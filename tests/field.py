"""Run the tests of every row of field.toml, and say row by row what came of them: `make field`.

    python -m tests.field [words]      only rows whose input holds these words

Exit code 0: every row has tests that ran and passed. Arguments that start with a dash go to pytest.
Left out on purpose: the tests themselves; they stand beside the code that they are about.
"""

from __future__ import annotations

import sys
import tomllib
from collections import Counter
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


def rows() -> list[dict]:
    """[{"input", "tests": [file or file::function, ...]}, ...]."""
    return tomllib.loads((TESTS / "field.toml").read_text())["row"]


class Outcomes:
    """Pytest plugin: what came of each test, by file and by function."""

    def __init__(self) -> None:
        self.of: dict[str, Counter] = {}

    def pytest_runtest_logreport(self, report) -> None:
        said = "failed" if report.failed else "skipped" if report.skipped else "passed"
        if report.when == "call" or said != "passed":  # a set-up that passes says nothing of the test
            function = report.nodeid.partition("[")[0].partition("@")[0]  # without parameters, without xdist's group
            for name in (function, function.partition("::")[0]):
                self.of.setdefault(name.removeprefix("tests/"), Counter())[said] += 1


def table(outcomes: dict[str, Counter], wanted: list[dict]) -> tuple[list[str], bool]:
    """(a line per row, whether every test named in them ran and passed)."""
    lines, good = [], True
    for row in wanted:
        missing = [name for name in row["tests"] if not outcomes.get(name, Counter())["passed"]]
        counts = sum((outcomes.get(name, Counter()) for name in row["tests"]), Counter())
        ok = not missing and not counts["failed"]
        good &= ok
        said = ", ".join(f"{counts[kind]} {kind}" for kind in ("passed", "failed", "skipped") if counts[kind])
        lines.append(f"{'ok  ' if ok else 'FAIL'} {row['input']}: {said or 'nothing ran'}")
        lines += [f"       none passed of {name}" for name in missing]
    return lines, good


def main(arguments: list[str]) -> int:
    words = [word for word in arguments if not word.startswith("-")]
    wanted = [row for row in rows() if all(word.lower() in row["input"].lower() for word in words)]
    if not wanted:
        print(f"no row of field.toml holds {words}")
        return 2
    named = sorted({str(TESTS / name) for row in wanted for name in row["tests"]})
    outcomes = Outcomes()
    code = pytest.main([*[a for a in arguments if a.startswith("-")], *named], plugins=[outcomes])
    lines, good = table(outcomes.of, wanted)
    print("\n".join(lines))
    return 0 if good and code == 0 else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
