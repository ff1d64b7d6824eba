from __future__ import annotations

import pytest

from tests.conftest import allowed_to_skip


@pytest.mark.parametrize(
    ("allowed", "may"), [("", False), (" , ", False), ("test_b", False), ("test_a", True), ("x, tests/t.py::test_a", True)]
)
def test_only_named_tests_may_be_skipped(allowed: str, may: bool) -> None:
    assert allowed_to_skip("tests/t.py::test_a", allowed) is may


def test_a_skipped_test_fails_the_run(pytester_like_run: tuple[int, str]) -> None:
    code, output = pytester_like_run
    assert code == 1
    assert "doesn't name it" in output


@pytest.fixture
def pytester_like_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, str]:
    """A run of its own over one skipped test, under the same rule."""
    import subprocess
    import sys

    from tests.support.processes import environment

    folder = tmp_path_factory.mktemp("skipping")
    (folder / "test_it.py").write_text("import pytest\n\n\ndef test_it():\n    pytest.skip('why not')\n")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "tests.conftest",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(folder),
        str(folder),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=folder, env=environment())
    return done.returncode, done.stdout
