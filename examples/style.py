# SPDX-License-Identifier: Apache-2.0
"""How the figures of the examples look."""

from __future__ import annotations

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as pyplot

COLOURS = ("#8a8f98", "#d98324", "#0b6e69")  # dense, two layers of torch, lath
INK, MUTED, GRID = "#1f2430", "#6b7079", "#e4e6ea"
DASHES = (0, (4, 2))
BLANK = {"facecolor": "white", "edgecolor": "none", "pad": 1}
STYLE = {
    "axes.edgecolor": MUTED,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.labelcolor": MUTED,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlepad": 12,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "figure.facecolor": "white",
    "font.size": 10,
    "grid.color": GRID,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
}
