"""A matplotlib figure as an inline SVG in the colours of its page: light, dark or print."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import TYPE_CHECKING

from markupsafe import Markup, escape

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, MUTED, GRID, PAPER = "#111213", "#616263", "#dedfe1", "#fefdfc"
SERIES = ("#0171b1", "#d55f01", "#019d73", "#cb78a6", "#e69e01", "#55b3e8", "#7a5195", "#8b6b4a")
"""Colour-blind safe (Okabe and Ito 2008, with two more), drawn with different dashes beside."""
STATUS = ("#bcd6eb", "#e8a33e", "#b5301f", "#0f0e0d", "#d9d4c6", "#8d8f92")
"""Falling lightness, so that they stay apart in a greyscale print."""
MARKS = ("#2b2c2d", "#2c2d2e", "#fcfdfe", "#fbfcfd", "#2d2e2f", "#fafbfc")
"""The marks on each status colour."""

_VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--grid",
    PAPER: "--paper",
    **{colour: f"--series-{number}" for number, colour in enumerate(SERIES, 1)},
    **{colour: f"--status-{number}" for number, colour in enumerate(STATUS, 1)},
    **{colour: f"--mark-{number}" for number, colour in enumerate(MARKS, 1)},
}
_COLOUR = re.compile("|".join(_VARIABLES))
_NOISE = re.compile(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->|<\?xml.*?\?>|<!DOCTYPE.*?>", re.DOTALL)
_OPENING = re.compile(r"<svg [^>]*?viewBox=\"([^\"]*)\"[^>]*>", re.DOTALL)
_ID = re.compile(r"\bid=\"([^\"]*)\"")
_REFERENCE = re.compile(r"(href=\"#|url\(#)")

_RC = {
    "svg.fonttype": "path",
    "svg.hashsalt": "medfl",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.linewidth": 0.8,
    "axes.formatter.use_mathtext": False,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "hatch.linewidth": 0.6,
    "hatch.color": PAPER,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


@contextmanager
def style() -> Iterator[None]:
    """Draw inside this context: fonts, lines and the colours that become the page's."""
    import matplotlib

    with matplotlib.rc_context(_RC):
        yield


class Drawings:
    """Turns the figures of one page into inline SVG with distinct identifiers."""

    def __init__(self) -> None:
        self._number = count(1)

    def inline(self, figure: "Figure", alt: str) -> Markup:
        """The figure as an SVG element. alt: what the figure shows, in words."""
        buffer = io.StringIO()
        with style():
            figure.savefig(buffer, format="svg", metadata={"Date": None})
        prefix = f"f{next(self._number)}-"
        text = _NOISE.sub("", buffer.getvalue()).strip()
        text = _ID.sub(lambda found: f'id="{prefix}{found[1]}"', text)
        text = _REFERENCE.sub(lambda found: found[1] + prefix, text)
        text = _COLOUR.sub(lambda found: f"var({_VARIABLES[found[0]]})", text)
        opening = f'<svg role="img" aria-label="{escape(alt)}" viewBox='
        return Markup(_OPENING.sub(lambda found: f'{opening}"{found[1]}">', text, count=1))
