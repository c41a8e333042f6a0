"""A command line whose errors are one line and name the nearest right word."""

import argparse
import difflib
import math
import re
import sys
from pathlib import Path


class Parser(argparse.ArgumentParser):
    """argparse, with suggestions and without guessing abbreviated flags."""

    def __init__(self, **kwargs):
        super().__init__(allow_abbrev=False, formatter_class=Formatter, **kwargs)
        self._positionals.title = "what it works on"

    def flags(self) -> list[str]:
        return [flag for action in self._actions for flag in action.option_strings]

    def parse_args(self, args=None, namespace=None):
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self.error(f"unknown argument {unknown[0]}" + nearest(unknown[0], self.flags()))
        return found

    def _check_value(self, action, value):
        if action.choices is not None and value not in action.choices:
            known = [str(choice) for choice in action.choices]
            raise argparse.ArgumentError(
                action, f"{value!r} is not known{nearest(str(value), known)}"
                f" (one of {', '.join(known)})")

    def error(self, message):
        print(f"error: {message}", file=sys.stderr)
        sys.exit(2)


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Help that fits a screen: a flag a line with its default, no blank lines between groups."""

    def __init__(self, prog):
        super().__init__(prog, max_help_position=24, width=100)

    def _get_help_string(self, action):
        default = action.default
        unsaid = default is None or default is False or default is argparse.SUPPRESS  # 0 is said
        if unsaid or "default" in (action.help or ""):
            return action.help
        if isinstance(default, list):
            default = ",".join(default)
        if isinstance(default, Path) and default.is_absolute():
            default = default.name
        return f"{action.help} (default {default})".replace("%", "%%")

    def format_help(self):
        head, *groups = re.split(r"\n\n(?=\S[^\n]*:\n  )", super().format_help())
        return head + "\n\n" + "\n".join(groups)


def nearest(word: str, known: list[str]) -> str:
    """"; did you mean X?", or nothing when no known word is near."""
    close = difflib.get_close_matches(word.split("=")[0], known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def number(low: float, high: float, kind=float, open_low: bool = True):
    """An argparse type: a number in (low, high], or in [low, high] with open_low=False."""

    def parse(text: str):
        try:
            value = kind(text)
        except ValueError:
            value = float("nan")
        if (not ((low < value if open_low else low <= value) and value <= high)
                or value == math.inf):
            end = "" if high == float("inf") else f" and at most {high:g}"
            what = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(
                f"{text!r} is not {what} {'above' if open_low else 'of at least'} {low:g}{end}")
        return value

    return parse


positive = number(0, float("inf"))
count = number(1, 1e9, int, open_low=False)
share = number(0, 1, open_low=False)
seed = number(0, 2**32 - 1, int, open_low=False)
