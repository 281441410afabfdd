"""Whether effects add up in the latent space."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd

from transverse.pp._perturbations import parts


def latent_additivity(effects: pd.DataFrame, delimiter: str | None, n_others: int = 1000) -> pd.DataFrame:
    """Measured effects of combinations beside the sums of their singles.

    Parameters
    ----------
    effects
        Mean effects against control, with perturbation and context in the index.
    delimiter
        What joins the parts of a combination.
    n_others
        At most so many sums of other singles are compared.
    """
    rows = []
    for (name, context), measured in effects.iterrows():
        singles = parts(name, delimiter)
        here = effects.xs(context, level="context")
        if len(singles) < 2 or not set(singles) <= set(here.index):
            continue
        total = here.loc[list(singles)].sum()
        others = [one for one in here.index if len(parts(one, delimiter)) == 1]
        sums = [pair for pair in combinations(others, len(singles)) if not set(pair) & set(singles)]
        if len(sums) > n_others:
            sums = [sums[i] for i in np.linspace(0, len(sums) - 1, n_others).astype(int)]
        by_chance = [_cosine(measured, here.loc[list(pair)].sum()) for pair in sums]
        length = np.linalg.norm(total)
        rows.append(
            {
                "perturbation": name,
                "context": context,
                "cosine": _cosine(measured, total),
                "best_single": max(_cosine(measured, here.loc[single]) for single in singles),
                "cosine_others": float(np.mean(by_chance)) if by_chance else np.nan,
                "length_ratio": float(np.linalg.norm(measured) / length) if length > 0 else np.nan,
            }
        )
    if not rows:
        raise ValueError(
            "No combination was measured in one context with all of its singles: there is nothing to compare."
        )
    return pd.DataFrame(rows)


def _cosine(a: pd.Series, b: pd.Series) -> float:
    length = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / length) if length > 0 else 0.0
