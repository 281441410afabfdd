from __future__ import annotations

from numbers import Integral

import numpy as np
import pandas as pd

from transverse._groups import group_profiles
from transverse._validation import examples

from ._conditions import Cells, Conditions, checked, halve, select_groups
from ._response import score_conditions


def noise_ceiling(
    truth: Cells,
    control: Cells,
    *,
    perturbation_key: str = "perturbation",
    context_key: str | None = "cell_type",
    n_splits: int = 10,
    layer: str | None = None,
    seed: int = 0,
    **kwargs,
) -> pd.DataFrame:
    r"""How well the measured responses agree with themselves: what a prediction can be expected to reach.

    Treated and control cells of every condition are halved at random, and one half's profile is scored as if it were the
    prediction of the other's (``ceiling="split half"``): what a repetition of the experiment with half the cells would reach.

    A prediction without noise can do better. If half of the cells reproduce a change with correlation :math:`r`, all of them would
    do so with :math:`r_2 = 2 r / (1 + r)` (Spearman and Brown), and the true change correlates with that measured on all of them with

    .. math::

        \sqrt{r_2} = \sqrt{2 r / (1 + r)} ,

    given for the Pearson correlation over all genes as ``ceiling="noise-free"``, 0 where :math:`r` is not positive. A method between the two is
    good; one above the second has most likely seen what it should predict.

    Parameters
    ----------
    truth, control, perturbation_key, context_key, layer
        As in :func:`response_scores`; at least two treated cells of a condition and two control cells of a context. Give
        all controls, those that predict too: one half of them stands for either.
    n_splits
        Number of random halvings, over which scores are averaged.
    seed
        Their seed.
    **kwargs
        ``n_top``, ``top_genes`` and ``clip`` of :func:`response_scores`.

    Returns
    -------
    Rows as :func:`response_scores` gives them, with the column ``ceiling``; ``n_cells`` is that of the half that is scored.

    Raises
    ------
    ValueError, KeyError, TypeError
        As :func:`response_scores`, and if there are too few cells to be halved.

    Examples
    --------
    >>> import transverse as tv
    >>> adata = tv.datasets.simulate_responses(n_contexts=2, n_perturbations=3, n_genes=30, n_cells_per_condition=20)
    >>> is_control = adata.obs["perturbation"] == "control"
    >>> ceiling = tv.metrics.noise_ceiling(adata[~is_control], adata[is_control], n_splits=3, n_top=10)
    >>> ceiling["ceiling"].unique().tolist()
    ['split half', 'noise-free']
    >>> summary = tv.metrics.summarize(ceiling, over=["perturbation", "cell_type"])
    """
    if not isinstance(n_splits, Integral) or n_splits < 1:
        raise ValueError(f"n_splits={n_splits!r} must be a whole number of at least 1.")
    if control is None:
        raise ValueError("control is needed: without it, cells of any condition resemble each other.")
    if unknown := set(kwargs) - {"n_top", "top_genes", "clip"}:
        raise TypeError(f"noise_ceiling passes on n_top, top_genes and clip, but got {examples(sorted(unknown))}.")
    given, by, context_by = checked({"truth": truth, "control": control}, perturbation_key, context_key, layer)
    rng = np.random.default_rng(seed)
    tables = []
    for _ in range(n_splits):
        # the first half stands for the prediction
        halves = {}
        for name, side_by in (("truth", by), ("control", context_by)):
            cells = halve(given[name], side_by, rng, name)
            halves[name] = [group_profiles(given[name], side_by, layer, half) for half in cells]
        (pred, true), (pred_control, scoring) = halves["truth"], halves["control"]
        pred_control, scoring = (select_groups(half, true.keys, "control") for half in (pred_control, scoring))
        data = Conditions(true.keys, given["truth"].var_names, true, pred, scoring, pred_control.mean)
        tables.append(score_conditions(data, **kwargs))
    scores = tables[0].assign(
        value=np.mean([table["value"] for table in tables], axis=0),
        ceiling="split half",
    )
    # among genes that one half chose for their change the formula does not hold
    r = scores[(scores["metric"] == "pearson") & (scores["of"] == "change") & (scores["genes"] == "all")]
    positive = r["value"].clip(lower=0)
    free = r.assign(value=np.sqrt(2 * positive / (1 + positive)), ceiling="noise-free")
    return pd.concat([scores, free], ignore_index=True)
