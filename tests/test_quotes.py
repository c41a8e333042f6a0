"""Quotes and links in the pages are those of today's source."""

import pytest
from conftest import ROOT

from support.files import UserError
from tools import quotes


@pytest.mark.parametrize("page", quotes.PAGES)
def test_pages_are_not_stale(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert quotes.renewed(text) == text, "python -m tools.quotes renews it"


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setattr(quotes, "HERE", tmp_path)
    (tmp_path / "a.py").write_text('''"""A module."""

N = 1


class A:
    """Its docstring."""

    def f(self):
        """Two
        lines."""
        x = N
        return x
''')
    return tmp_path


@pytest.mark.parametrize("name, code, lines", [
    ("A.f", "def f(self):\n    x = N\n    return x", (9, 13)),
    ("A", "class A:\n    def f(self):\n        x = N\n        return x", (6, 13)),
    ("A.f: x = … x =", "x = N", (12, 12)), ("N", "N = 1", (3, 3))])
def test_a_quote_is_the_code_without_docstrings(source, name, code, lines):
    page = f"before\n<!-- quote: a.py {name} -->\nold\n<!-- end -->\nafter\n"
    new = quotes.renewed(page)
    assert new == (f"before\n<!-- quote: a.py {name} -->\n```python\n{code}\n```\n"
                   "[a.py, lines {0} to {1}](a.py#L{0}-L{1})\n<!-- end -->\nafter\n").format(*lines)
    assert quotes.renewed(new) == new


def test_links_follow_their_names(source):
    assert quotes.renewed("[`A.f`](a.py#L1), [a.py](a.py)") == "[`A.f`](a.py#L9-L13), [a.py](a.py)"


@pytest.mark.parametrize("page, said", [
    ("[`A.g`](a.py#L1)", "a.py has no A.g"), ("[`A`](b.py#L1)", "b.py has no A"),
    ("<!-- quote: a.py A -->\n", "no <!-- end -->"),
    ("<!-- quote: a.py A.f: x = … y -->\n<!-- end -->", "no lines from 'x =' to 'y'")])
def test_what_is_not_there_is_named(source, page, said):
    with pytest.raises(UserError, match=said):
        quotes.renewed(page)


def test_the_command_renews_or_says_what_is_stale(source, command):
    for page in quotes.PAGES:
        (source / page).write_text("[`N`](a.py#L1)")
    done = command("tools.quotes", "--check")
    assert done.returncode == 1 and "stale: PAPER.md, README.md" in done.stderr
    assert "renewed PAPER.md" in command("tools.quotes").succeeded()
    assert (source / "README.md").read_text() == "[`N`](a.py#L3-L3)"
    assert command("tools.quotes", "--check").succeeded() == ""
