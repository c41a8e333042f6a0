"""The house: imports run down its floors, and files and functions stay short."""

import ast

import pytest
from conftest import ROOT

FLOORS = [  # from the top; the modules and folders of one floor
    {"tools", "examples"}, {"train", "export"}, {"evaluate"}, {"distill", "sample"},
    {"masking", "bert", "data"}, {"support"}]
FOLDERS = {"tools", "examples", "sample", "support"}
FILES = [path for path in ROOT.glob("**/*.py")
         if path.parent in (ROOT, *(ROOT / folder for folder in FOLDERS))]
FLOOR = {place: floor for floor, places in enumerate(FLOORS) for place in places}


def place_of(path):
    return path.stem if path.parent == ROOT else path.parent.name


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_down(path):
    here = place_of(path)
    assert here in FLOOR, f"{here}: this place has no floor"
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = ([alias.name for alias in node.names] if isinstance(node, ast.Import)
                 else [node.module] if isinstance(node, ast.ImportFrom) else [])
        for there in {name.split(".")[0] for name in names} & set(FLOOR):
            inside = there == here and there in FOLDERS
            assert inside or FLOOR[there] > FLOOR[here], f"{here} imports {there}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_short(path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 50, node.name
