"""How far something long has come: a bar in a terminal; elsewhere, as in a log, a line a tenth."""

import time
from datetime import timedelta

from tqdm import tqdm


class Progress(tqdm):
    """To be told of every step, or of every piece of a file.

    Args:
        what: begins each line.
        total: how much there is to do, in `unit`s.
        begun: how much of it was done before.
        lines_to: where the lines go, if not to stdout.
    """

    def __init__(self, what: str, total: int, unit: str, begun: int = 0, lines_to=None):
        super().__init__(desc=what, total=total, initial=begun, unit=unit, unit_scale=unit == "B",
                         mininterval=0.5, disable=None)  # None: unless it is a terminal
        self.what, self.in_bytes, self.plural = what, unit == "B", f" {unit}s"
        self.lines_to = lines_to
        self.begun, self.began = begun, time.perf_counter()

    def text_of(self, n: float) -> str:
        return f"{self.format_sizeof(n)}B" if self.in_bytes else f"{n:,}"

    def advance(self, amount: int, shown: str = "") -> None:
        """`shown`: how it goes, such as the loss."""
        before = self.n
        if not self.disable:
            self.set_postfix_str(shown, refresh=False)
            self.update(amount)
            return
        self.n += amount
        if 10 * self.n // self.total > 10 * before // self.total:
            pace = (self.n - self.begun) / (time.perf_counter() - self.began)
            left = timedelta(seconds=round((self.total - self.n) / pace))
            shown = f"{shown} · " * bool(shown)
            speed = self.text_of(pace) if self.in_bytes else f"{pace:.2g}{self.plural}"
            print(f"{self.what} {self.text_of(self.n)}/{self.text_of(self.total)} · {shown}"
                  f"{speed} a second · {left} left", file=self.lines_to, flush=True)
