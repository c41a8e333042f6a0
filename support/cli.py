"""A command line whose errors are one line and name the nearest right word."""

import argparse
import difflib
import math
import re
from collections.abc import Iterable

from support.files import UserError, fail


class Parser(argparse.ArgumentParser):
    """argparse, with suggestions and without guessing abbreviated flags."""

    def __init__(self, **kwargs):
        super().__init__(allow_abbrev=False, formatter_class=Formatter, **kwargs)

    def parse_args(self, args=None, namespace=None):
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            near = nearest(unknown[0], self._option_string_actions)
            self.error(f"unknown argument {unknown[0]}{near}")
        return parsed

    def _check_value(self, action, value):
        if action.choices is not None and value not in action.choices:
            near, known = nearest(value, action.choices), ", ".join(action.choices)
            raise argparse.ArgumentError(action, f"{value!r} is not known{near} (one of {known})")

    def error(self, message):
        fail(message, 2)


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Help that fits on a screen: a line for each flag, with its default; no blank lines between
    groups."""

    def __init__(self, prog):
        super().__init__(prog, max_help_position=24, width=100)

    def _get_help_string(self, action):
        default = action.default
        unsaid = default is None or default is False or default is argparse.SUPPRESS  # 0 is said
        if unsaid or "default" in action.help:
            return action.help
        return f"{action.help} (default {default})".replace("%", "%%")

    def format_help(self):
        head, *groups = re.split(r"\n\n(?=\S[^\n]*:\n  )", super().format_help())
        return head + "\n\n" + "\n".join(groups)


def nearest(word: str, known: Iterable[str]) -> str:
    """"; did you mean X?", or nothing if no known word is similar; capitals do not matter."""
    names = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.split("=")[0].lower(), names, n=1, cutoff=0.5)
    return f"; did you mean {names[close[0]]}?" if close else ""


def unknown(flag: str, word: str, known: Iterable[str]) -> UserError:
    """For a flag whose values argparse cannot list."""
    return UserError(f"{flag} {word} is not known{nearest(word, known)} (one of "
                     f"{', '.join(known)})")


def number(low: float, high: float, kind=float, open_low: bool = True):
    """An argparse type: a number in (low, high], or in [low, high] with open_low=False."""

    def parse(text: str):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        above = low < value or (low == value and not open_low)
        if not (above and value <= high and value < math.inf):
            end = "" if high == math.inf else f" and at most {high:g}"
            if high == 1 < value <= 100:
                end += f"; {value:g} % is {value / 100:g}"
            what = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(
                f"{text!r} is not {what} {'above' if open_low else 'of at least'} {low:g}{end}")
        return value

    return parse


positive = number(0, math.inf)
count = number(1, 1e9, int, open_low=False)
share = number(0, 1, open_low=False)
seed = number(0, 2**32 - 1, int, open_low=False)
