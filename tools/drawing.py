"""What all pictures share: colours, panels, legends, files."""

import zlib
from pathlib import Path

from support.files import UserError
from tools import rows, tables

try:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
except ImportError:
    plt = None

STYLES = {  # colours of Okabe and Ito, which every kind of colour vision tells apart
    "dense": ("#000000", "*"), "random": ("#999999", "X"), "magnitude": ("#0072B2", "o"),
    "l0": ("#E69F00", "s"), "movement": ("#009E73", "^"), "soft_movement": ("#D55E00", "D")}
OWN_STYLES = (("#CC79A7", "P"), ("#56B4E9", "v"), ("#882255", "p"))  # of other methods, by name
GREY = "#BBBBBB"
LOOK = {"font.size": 11, "axes.titlesize": 12, "axes.grid": True, "grid.alpha": 0.3,
        "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False,
        "figure.constrained_layout.use": True}


def start() -> None:
    """To be called before anything is drawn."""
    if plt is None:
        raise UserError("pictures need matplotlib: python -m pip install -r requirements-dev.txt")
    plt.rcParams.update(LOOK)


def style_of(method: str) -> tuple[str, str]:
    own = OWN_STYLES[zlib.crc32(rows.method_name(method).encode()) % len(OWN_STYLES)]
    return STYLES.get(method, own)


def panels(count: int, shared: bool = False):
    """A figure as wide as README.md shows it, with `count` panels → the figure, its axes, which
    have the same limits if `shared`."""
    columns = 2 if count == 4 else min(count, 3)
    lines = -(-count // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(max(6.0, 3.6 * columns), 3.3 * lines), squeeze=False,
        sharex=shared, sharey=shared)
    for axis in axes.flat[count:]:
        axis.set_axis_off()
    return figure, list(axes.flat[:count])


def save(figure, path: Path, dpi: int = 160) -> None:
    """Write PATH.png; the same picture gives the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(f"{path}.png", dpi=dpi)  # not with_suffix: a name may have dots
    plt.close(figure)
    print(f"drew {path}.png")


def legend(figure, axes) -> None:
    """One legend below all panels; the figure grows by its height."""
    entries = {}
    for axis in axes:
        entries |= dict(zip(*reversed(axis.get_legend_handles_labels())))
    entries = dict(sorted(entries.items(), key=lambda item: tables.method_order(item[0])))
    columns = int(figure.get_figwidth() / (0.09 * max(map(len, entries)) + 0.7))  # in inches
    columns = min(max(1, columns), 4, len(entries))
    figure.set_figheight(figure.get_figheight() + 0.24 * -(-len(entries) // columns))
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=columns)


def logarithmic(axis, ticks: tuple, formatter, which: str = "x") -> None:
    """A logarithmic x or y axis; `ticks`: where in each decade."""
    axis.set(**{f"{which}scale": "log"})
    part = getattr(axis, f"{which}axis")
    part.set_major_locator(matplotlib.ticker.LogLocator(subs=ticks))
    part.set_minor_locator(matplotlib.ticker.NullLocator())
    part.set_major_formatter(formatter)


def dashes(labels: list[tuple[str, str]]) -> dict[str, str]:
    """(method, label) of all lines → label → dashes that tell lines of one colour apart."""
    styles = [style_of(method) for method, _ in dict.fromkeys(labels)]
    return {label: ("-", "--", ":", "-.")[styles[:i].count(styles[i]) % 4]
            for i, (_, label) in enumerate(dict.fromkeys(labels))}
