"""PAPER.md: every place and every test that it names exists."""

import ast
import re

import pytest
from conftest import ROOT

GUIDE = (ROOT / "PAPER.md").read_text(encoding="utf-8")
REFERENCES = sorted(set(re.findall(r"`([\w/]+\.py):([\w.]+)`", GUIDE)))


def names(path):
    """Functions, classes and constants of a file, and Class.method."""
    found = set()
    for node in ast.parse((ROOT / path).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign):
            found |= {t.id for t in node.targets if isinstance(t, ast.Name)}
        elif hasattr(node, "name"):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{part.name}" for part in node.body if hasattr(part, "name")}
    return found


@pytest.mark.parametrize("path, name", REFERENCES)
def test_reference_exists(path, name):
    assert name in names(path)


def test_every_equation_is_there():
    assert len(REFERENCES) > 20
    for number in range(1, 6):
        assert f"Eq. ({number})" in GUIDE
