"""The house: imports run down its floors and in no circle, and files and functions stay short."""

import ast
from graphlib import TopologicalSorter

import pytest
from conftest import ROOT

FLOORS = [  # from the top; the modules and folders of one floor
    {"tools", "examples"}, {"train", "export"}, {"evaluate"}, {"distill", "sample"},
    {"masking", "bert", "data"}, {"support"}]
FOLDERS = {"tools", "examples", "sample", "support"}
FILES = [path for path in ROOT.glob("**/*.py")
         if path.parent in (ROOT, *(ROOT / folder for folder in FOLDERS))]
FLOOR = {place: floor for floor, places in enumerate(FLOORS) for place in places}


def imports(path):
    """The full names of what a file imports, anywhere in it: modules, and names out of them."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: names here are full, none begins with a dot"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_down(path):
    here = path.stem if path.parent == ROOT else path.parent.name
    assert here in FLOOR, f"{here}: this place has no floor"
    for there in {name.split(".")[0] for name in imports(path)} & set(FLOOR):
        inside = there == here and there in FOLDERS
        assert inside or FLOOR[there] > FLOOR[here], f"{here} imports {there}"


def test_no_imports_in_a_circle():
    """Not even inside a folder."""
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in FILES}
    TopologicalSorter({  # prepare() raises CycleError, which names the circle
        module: {other for name in imports(path) for other in modules
                 if f"{name}.".startswith(f"{other}.")}
        for module, path in modules.items()}).prepare()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_short(path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 50, node.name
