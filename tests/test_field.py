"""Every row of field.toml names tests that exist, and the table of `make field` says what came of them."""

import ast
from collections import Counter

from tests.field import TESTS, rows, table


def test_every_row_names_tests_that_exist():
    for row in rows():
        assert row["input"] and row["tests"], row
        for name in row["tests"]:
            file, _, function = name.partition("::")
            defined = [n.name for n in ast.walk(ast.parse((TESTS / file).read_text())) if hasattr(n, "name")]
            wanted = function.rpartition("::")[2]  # behind its class, where it has one
            assert wanted in defined if function else any(str(n).startswith("test_") for n in defined), name
    assert len({row["input"] for row in rows()}) == len(rows())


def test_a_row_is_good_if_all_of_its_tests_ran_and_passed():
    wanted = [{"input": "a", "tests": ["x.py::t", "y.py"]}, {"input": "b", "tests": ["z.py"]}]
    ran = {"x.py::t": Counter(passed=3), "y.py": Counter(passed=1, skipped=1), "z.py": Counter(passed=1)}
    lines, good = table(ran, wanted)
    assert good and lines == ["ok   a: 4 passed, 1 skipped", "ok   b: 1 passed"]
    assert table(ran | {"y.py": Counter(passed=5, failed=1)}, wanted)[1] is False
    lines, good = table(ran | {"z.py": Counter(skipped=2)}, wanted)
    assert not good and lines[1:] == ["FAIL b: 2 skipped", "       none passed of z.py"]
    assert table({}, wanted)[1] is False
