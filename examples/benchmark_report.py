"""What becomes of the figures of `benchmark.py`: tables, two pictures, and the marked places of BENCHMARKS.md."""

from __future__ import annotations

import re
import textwrap
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from benchmark_contenders import BACKWARD, FORWARD, OURS, PATTERNS

HERE = Path(__file__).parent
PLANNED = f"{OURS}, planned before"
COLOURS = {
    OURS: "#D55E00",
    PLANNED: "#D55E00",
    "TensorFlow": "#0072B2",
    "PyTorch COO": "#CC79A7",
    "SciPy CSR": "#009E73",
    "CuPy CSR": "#009E73",
    "GraphBLAS": "#56B4E9",
    "PyData sparse": "#E69F00",
    "JAX BCOO": "#000000",
}


def report(figures: dict[str, Any], folder: Path, *, publish: bool) -> None:
    """Print tables, save pictures, and put both where readers find them."""
    device, groups = figures["device"], {}
    where = f"{figures['cores']} CPU cores" if device == "cpu" else figures["kind"]
    for each in figures["records"]:
        groups.setdefault(each["group"], []).append(each)
    blocks = {f"{device}-machine": machine(figures)}
    blocks |= {f"{device}-{name}": table(each) for name, each in groups.items()}
    for name, text in blocks.items():
        print(f"\n{name}\n\n{text}")
    for place in (folder, HERE) if publish else (folder,):
        for name, draw in (("size", draw_sizes), ("pattern", draw_patterns)):
            if name in groups and find_spec("matplotlib"):
                path = place / f"benchmark_{name}{'' if device == 'cpu' else '_' + device}.png"
                draw(groups[name], where).savefig(path, dpi=120)
    if publish:
        path = HERE / "BENCHMARKS.md"
        page = path.read_text()
        for name, text in blocks.items():
            place = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
            page, found = place.subn(lambda match, text=text: f"{match[1]}\n{text}\n\n{match[2]}", page)
            if not found:
                raise SystemExit(f"{path} has no place for {name}")
        path.write_text(page)


def machine(figures: dict[str, Any]) -> str:
    """The machine and the versions, and what is missing."""
    versions = ", ".join(f"{name} {version}" for name, version in figures["versions"].items())
    left_out = "".join(f"\n- left out: {name}: {reason}" for name, reason in figures.get("left_out", {}).items())
    return f"{figures['kind']}, {figures['cores']} cores; {versions}{left_out}"


def number(value: float) -> str:
    """Two digits, without an exponent; all digits of whole numbers."""
    decimals = 0 if isinstance(value, int) else min(3, max(0, 1 - int(np.floor(np.log10(max(value, 1e-4))))))
    return f"{value:,.{decimals}f}"


def table(records: list[dict[str, Any]]) -> str:
    """A Markdown table: a row for each contender, under each operation; in brackets our time divided by theirs."""
    columns = list(dict.fromkeys(each["column"] for each in records))
    counts = [each.split(", ")[0] for each in columns]  # of programs, each count for all sizes
    columns.sort(key=lambda column: counts.index(column.split(", ")[0]))
    values = {(each["operation"], each["contender"], each["column"]): each["value"] for each in records}
    lines = [f"| | {' | '.join(columns)} |", "|---|" + "---:|" * len(columns)]
    for operation in dict.fromkeys(operation for operation, *_ in values):
        lines.append(f"| **{operation}** |" + " |" * len(columns))
        for name in dict.fromkeys(contender for its, contender, _ in values if its == operation):
            cells = []
            for column in columns:
                value, our_value = (values.get((operation, each, column)) for each in (name, OURS))
                ratio = f" ({number(our_value / value)})" if value and our_value and name != OURS else ""
                is_time = records[0]["group"] in ("size", "pattern")
                cells.append("-" if value is None else number(value) + ratio * is_time)
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw_sizes(timings: list[dict[str, Any]], device: str) -> Any:
    """Our time against the others', by size."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5), layout="constrained")
    for axes, operation in zip(figure.subplots(1, 2, sharey=True), (FORWARD, BACKWARD), strict=True):
        ends, shown = [], [t for t in timings if t["operation"] == operation]
        for name, colour in COLOURS.items():
            points = [(t["entries"], t["value"]) for t in shown if t["contender"] == name]
            if points:
                ends.append((np.log10(points[-1][1]), name))
                style = {"linestyle": "--" if name == PLANNED else "-", "zorder": 3 if name == OURS else 2}
                axes.loglog(*zip(*points, strict=True), color=colour, linewidth=4 if name == OURS else 1.5, **style)
        low, high = np.log10(axes.get_ylim())
        place, right = -np.inf, 1.5 * max(t["entries"] for t in timings)
        for end, name in sorted(ends):  # names at the ends of the lines, none over another
            place = max(end, place + 0.055 * (high - low))
            style = {"color": COLOURS[name], "weight": "bold" if name == OURS else "normal", "va": "center"}
            axes.annotate(name.replace(f"{OURS}, ", ""), (right, 10**place), annotation_clip=False, **style)
        axes.set(title=operation, xlabel="entries of each matrix")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    figure.axes[0].set_ylabel("milliseconds")
    figure.suptitle(f"Adding two sparse matrices, half of their entries shared ({device})")
    return figure


def draw_patterns(timings: list[dict[str, Any]], device: str) -> Any:
    """How many times as long others take as we do, by pattern."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    figure = Figure(figsize=(12, 7), layout="constrained")
    patterns = list(dict.fromkeys(t["column"] for t in timings))
    for axes, operation in zip(figure.subplots(2, 1), (FORWARD, BACKWARD), strict=True):
        own = {(t["contender"], t["column"]): t["value"] for t in timings if t["operation"] == operation}
        names = [name for name in COLOURS if name not in (OURS, PLANNED) and name in {each for each, _ in own}]
        for k, name in enumerate(names):
            found = [(i, own[name, p] / own[OURS, p]) for i, p in enumerate(patterns) if (name, p) in own]
            x, ratio = np.transpose(found)
            width = 0.8 / len(names)
            axes.bar(x + (k + 0.5) * width - 0.4, ratio - 1, width, bottom=1, color=COLOURS[name], label=name)
        axes.axhline(1, color=COLOURS[OURS], linewidth=3)
        axes.set(yscale="log", title=operation, ylabel="times as long")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_xticks(range(len(patterns)), [textwrap.fill(PATTERNS[each], 16) for each in patterns])
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.25)
        axes.set_axisbelow(True)
    figure.axes[0].legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    size = max(t["entries"] for t in timings)
    figure.suptitle(f"Time divided by that of {OURS}: above the line we are faster. {size:,} entries ({device})")
    return figure
