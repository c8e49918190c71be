"""Methods of selection, by name: what each needs, who proposed it, and what it costs.

A method either ranks all rows at once (`rank`, best first), or picks `keep` rows from a pool, which is one class's at
a time where the subset is balanced (`pick`). Both go best first, and fewer picks are the beginning of more.

Shapes: n rows, d features, c classes, m rows kept, k neighbours.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import NamedTuple

import numpy as np

from toolkit.selection import ranking
from toolkit.selection.pool import How, Picked, Pool

Rank = Callable[[Pool, np.random.Generator, How], np.ndarray]
Pick = Callable[[Pool, int, np.random.Generator, How], Picked]


class Method(NamedTuple):
    """`needs` are fields of Pool: scores, features, logits. `weighted` methods also say how much each row counts;
    `settings` are the fields of How that the method obeys, beside those that all do."""

    paper: str
    needs: tuple[str, ...]
    cost: str
    rank: Rank | None = None
    pick: Pick | None = None
    weighted: bool = False
    settings: tuple[str, ...] = ()

    @property
    def needs_score(self) -> bool:
        return "scores" in self.needs


def _from(module: str, name: str) -> Pick:
    """A method of a module that imports torch, which is imported when the method is called: random needs none."""

    def pick(pool: Pool, keep: int, rng: np.random.Generator, how: How) -> Picked:
        return getattr(import_module(f"toolkit.selection.{module}"), name)(pool, keep, rng, how)

    return pick


METHODS = {
    "random": Method("uniform; with KD, the winner of Ben-Baruch et al. (ICML 2025)", (), "n", rank=ranking.random),
    "hardest": Method(
        "Paul et al., Deep Learning on a Data Diet (NeurIPS 2021), with its scores",
        ("scores",),
        "n log n",
        rank=ranking.hardest,
    ),
    "easiest": Method(
        "Sorscher et al., Beyond neural scaling laws (NeurIPS 2022), for small data",
        ("scores",),
        "n log n",
        rank=ranking.easiest,
    ),
    "window": Method(
        "Choi et al., BWS: Best Window Selection (ICML 2024), a window around the quantile --center",
        ("scores",),
        "n log n",
        pick=ranking.window,
        settings=("center",),
    ),
    "stratified": Method(
        "Zheng et al., Coverage-centric Coreset Selection (ICLR 2023): 50 strata, without the hardest --drop-hardest",
        ("scores",),
        "n log n",
        pick=ranking.stratified,
        settings=("drop_hardest",),
    ),
    "moderate": Method(
        "Xia et al., Moderate Coreset (ICLR 2023)", ("features",), "n d", pick=_from("geometry", "moderate")
    ),
    "herding": Method(
        "Welling, Herding Dynamical Weights to Learn (ICML 2009)",
        ("features",),
        "n m d",
        pick=_from("geometry", "herding"),
    ),
    "k-center": Method(
        "Sener and Savarese, Active Learning for CNNs: A Core-Set Approach (ICLR 2018), greedy",
        ("features",),
        "n m d",
        pick=_from("geometry", "k_center"),
    ),
    "contextual-diversity": Method(
        "Agarwal et al., Contextual Diversity for Active Learning (ECCV 2020)",
        ("logits",),
        "n m c",
        pick=_from("geometry", "contextual_diversity"),
    ),
    "facility-location": Method(
        "Iyer et al., Submodular Combinatorial Information Measures (ALT 2021); lazy greedy: Minoux 1978",
        ("features",),
        "n² d + evaluations · n",
        pick=_from("submodular", "facility_location"),
    ),
    "graph-cut": Method(
        "Iyer et al., Submodular Combinatorial Information Measures (ALT 2021)",
        ("features",),
        "n m d",
        pick=_from("submodular", "graph_cut"),
    ),
    "craig": Method(
        "Mirzasoleiman et al., Coresets for Data-efficient Training (ICML 2020), last-layer gradients",
        ("features", "logits"),
        "n² (c + d) + evaluations · n",
        pick=_from("submodular", "craig"),
        weighted=True,
    ),
    "grad-match": Method(
        "Killamsetty et al., GRAD-MATCH (ICML 2021), orthogonal matching pursuit on last-layer gradients",
        ("features", "logits"),
        "m (n c d + (c d)²)",
        pick=_from("gradients", "grad_match"),
        weighted=True,
    ),
    "glister": Method(
        "Killamsetty et al., GLISTER (AAAI 2021), last-layer gradients; its weights are all 1",
        ("features", "logits"),
        "updates · n c d",
        pick=_from("gradients", "glister"),
        weighted=True,
    ),
    "cal": Method(
        "Margatina et al., Active Learning by Acquiring Contrastive Examples (EMNLP 2021)",
        ("features", "logits"),
        "n² d",
        pick=_from("neighbours", "cal"),
    ),
    "d2": Method(
        "Maharana et al., D2 Pruning: Message Passing (ICLR 2024), without the hardest --drop-hardest",
        ("scores", "features"),
        "n² d + m k log n",
        pick=_from("neighbours", "d2"),
        settings=("drop_hardest",),
    ),
}
