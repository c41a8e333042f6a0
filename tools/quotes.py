"""Code quoted in the pages, and links to its lines, written anew from the source.

    python -m tools.quotes            renew them in PAPER.md and README.md
    python -m tools.quotes --check    only say which page is stale; exit status 1

A quote stands between <!-- quote: FILE NAME --> and <!-- end -->. NAME is a function, a class, a
method or a constant, such as Movement.score_gradient; docstrings are left out. For a part of it,

    <!-- quote: masking.py L0.mask: u = draw … M = Z -->

quotes from the first line that contains "u = draw" to the next one that contains "M = Z".
A link whose text is such a name, as in [`top_v`](masking.py#L1), is led to the lines of the name.
"""

import ast
import re
import textwrap
from pathlib import Path

from support import cli
from support.files import RunError, UserError, run_main, write_atomically

HERE = Path(__file__).parent.parent
PAGES = ("PAPER.md", "README.md")
MARK = re.compile(r"(<!-- quote: (\S+\.py) ([\w.]+)(?:: (\S[^\n]*?) … (\S[^\n]*?))? -->\n)"
                  r"(?:(?!<!--).)*<!-- end -->", re.DOTALL)
LINK = re.compile(r"(\[`([\w.]+)`\]\((\w[\w/]*\.py)#)[\w-]*\)")


def names_of(node: ast.AST) -> list[str]:
    """What a statement defines: a function, a class or constants."""
    targets = (getattr(target, "id", "") for target in getattr(node, "targets", ()))
    return [getattr(node, "name", ""), *targets]


def find(file: str, name: str) -> ast.AST:
    """Where `file` defines `name`; UserError if it does not."""
    path = HERE / file
    node = ast.parse(path.read_text(encoding="utf-8")) if path.is_file() else None
    for part in name.split("."):
        node = next((n for n in getattr(node, "body", []) if part in names_of(n)), None)
    if node is None:
        raise UserError(f"{file} has no {name}")
    return node


def without_docstrings(file: str, name: str) -> dict[int, str]:
    """The lines of a definition by their numbers, from 1."""
    node, lines = find(file, name), (HERE / file).read_text(encoding="utf-8").splitlines()
    left = {number: lines[number - 1] for number in range(node.lineno, node.end_lineno + 1)}
    for inner in ast.walk(node):
        if isinstance(inner, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(inner):
            first, last = inner.body[0].lineno, inner.body[0].end_lineno
            for number in range(first, last + 1 + (left.get(last + 1) == "")):
                del left[number]
    return left


def quote(mark: re.Match) -> str:
    head, file, name, first, last = mark.groups(default="")
    left = without_docstrings(file, name)
    begin = next((n for n in left if first in left[n]), max(left) + 1)
    end = next((n for n in left if n >= begin and last in left[n]), 0) if last else max(left)
    if begin > end:
        raise UserError(f"{file}, {name}: no lines from {first!r} to {last!r}")
    code = textwrap.dedent("\n".join(left[n] for n in left if begin <= n <= end))
    return (f"{head}```python\n{code}\n```\n"
            f"[{file}, lines {begin} to {end}]({file}#L{begin}-L{end})\n<!-- end -->")


def link(match: re.Match) -> str:
    node = find(match[3], match[2])
    return f"{match[1]}L{node.lineno}-L{node.end_lineno})"


def renewed(text: str) -> str:
    """The text of a page with all its quotes and links as the source is now."""
    if text.count("<!-- quote: ") != len(MARK.findall(text)):
        raise UserError("a <!-- quote: … --> is misspelt, or has no <!-- end -->")
    return LINK.sub(link, MARK.sub(quote, text))


def main() -> None:
    p = cli.Parser(prog="python -m tools.quotes", description=__doc__)
    p.add_argument("--check", action="store_true", help="change nothing; say what is stale")
    args = p.parse_args()
    texts = {page: (HERE / page).read_text(encoding="utf-8") for page in PAGES}
    stale = {page: new for page, text in texts.items() if (new := renewed(text)) != text}
    if stale and args.check:
        raise RunError(f"stale: {', '.join(stale)}; python -m tools.quotes renews it")
    for page, text in stale.items():
        write_atomically(HERE / page, text)
        print(f"renewed {page}")


if __name__ == "__main__":
    run_main(main)
