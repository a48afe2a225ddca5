"""cases.toml names tests that there are."""

import ast
from pathlib import Path

import pytest
from conftest import CASES

FOLDER = Path(__file__).parent


@pytest.mark.parametrize("file", CASES)
def test_functions_exist(file):
    tree = ast.parse((FOLDER / f"test_{file}.py").read_text())
    functions = {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}
    assert set(CASES[file]) <= functions, set(CASES[file]) - functions
