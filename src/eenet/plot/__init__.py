"""Figures of what policies reach and how they decide.

What a comparison found: utility over cost, gains over fixed exits, exits, groups. How a policy decides: who leaves
where, scores by class, weights of scores, exits by budget, reliability. Every function takes comparisons, reports,
tables or policies and returns a figure of matplotlib, which it neither shows nor saves:
``figure.savefig("ladder.png")``. Its numbers are those of `eenet.evaluation`. Colours are those of Okabe and Ito;
markers, line styles, hatches or written numbers repeat what they say, for grey print.

Raises:
    MissingExtraError: matplotlib is not installed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from eenet.errors import require
from eenet.lazy import lazy

require("matplotlib", reason="figures need it")

if TYPE_CHECKING:
    from eenet.plot.comparison import exit_shares as exit_shares
    from eenet.plot.comparison import gain_over_static as gain_over_static
    from eenet.plot.comparison import group_losses as group_losses
    from eenet.plot.comparison import utility_cost as utility_cost
    from eenet.plot.exits import exits_by_budget as exits_by_budget
    from eenet.plot.exits import reliability as reliability
    from eenet.plot.ladder import ladder as ladder
    from eenet.plot.scores import scores_by_class as scores_by_class
    from eenet.plot.weights import score_weights as score_weights

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "eenet.plot.comparison": ("utility_cost", "gain_over_static", "exit_shares", "group_losses"),
        "eenet.plot.ladder": ("ladder",),
        "eenet.plot.scores": ("scores_by_class",),
        "eenet.plot.weights": ("score_weights",),
        "eenet.plot.exits": ("exits_by_budget", "reliability"),
    },
)
