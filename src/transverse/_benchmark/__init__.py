"""One call that holds a method against the baselines that fit, and against the noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any, Literal, get_args

import pandas as pd
from anndata import AnnData

from ._gene_maps import gene_map_table
from ._labels import label_table
from ._methods import as_mapping
from ._responses import response_table
from ._signatures import signature_table
from ._table import FirstOfDraws, MeanOfUnits, summary_table

Task = Literal["responses", "signatures", "labels", "genes"]

_TABLES = {
    "responses": (response_table, ["of", "genes", "metric"]),
    "signatures": (signature_table, ["of", "genes", "metric"]),
    "labels": (label_table, ["cells", "metric", "cell_type"]),
    "genes": (gene_map_table, ["genes", "metric"]),
}


def benchmark(
    data: AnnData | Mapping[str, AnnData] | Sequence[AnnData],
    models: Mapping[str, Any] | Any | None = None,
    *,
    task: Task = "responses",
    baselines: Mapping[str, Any] | None = None,
    seeds: int | Sequence[int] = (0,),
    level: float = 0.95,
    n_resamples: int = 2000,
    return_scores: bool = False,
    **options,
) -> pd.DataFrame | tuple[pd.DataFrame, pd.DataFrame]:
    r"""Run models and the baselines that fit, over splits and seeds, beside the noise ceiling.

    Every method is trained on what its split leaves to the training and asked for what was held out. Splits that leak are refused
    before anything is trained (:func:`transverse.pp.check_split`). Controls that predict never score.

    Parameters
    ----------
    data
        What the task needs: log-normalised cells (``"responses"``), signatures (``"signatures"``), the context's and the
        target's counts (``"labels"``), or samples of two species, by name or stacked (``"genes"``).
    models
        Models by name; or one, or several, which then go by the names of their classes. Each is

        - a model class: it is set up on the training data with the keys below, and trained with its defaults;
        - an object with ``fit``, such as a baseline;
        - a function of training data and seed that returns something trained, with the ``predict`` (genes: ``map_genes``) of the
          models. For ``"labels"``: a function of context, target (without its labels) and seed that returns the labels, as
          ``transfer_labels`` does.
    task
        What is predicted.
    baselines
        Baselines by name instead of those of the task, ``{}`` for none. Classes and functions without arguments that make a
        baseline are left out of splits where they cannot predict every condition; objects raise there.
    seeds
        Seeds of the models, and, where ``splits`` gives holdouts, of the division of the control cells.
    level, n_resamples
        Level, and resamples, of the confidence intervals.
    return_scores
        Also return the scores of every condition, split and seed.
    **options
        Of the task.

        ``"responses"``: ``splits``, the name or names of columns of ``obs`` (:func:`transverse.pp.split_responses`; default
        ``"split"``) or holdouts by name (:func:`transverse.pp.leave_out`), with ``by``; ``perturbation_key``, ``control``,
        ``context_key``, ``animal_key``, ``delimiter``, ``layer``, ``n_top``, ``allow_unseen``, ``identical_cells``;
        ``energy=True`` for :func:`~transverse.metrics.energy_distance`; ``n_ceiling_splits``.

        ``"signatures"``: the same without controls; ``cell_type_key`` instead of ``context_key``. What was measured of a perturbation
        in other cell types is the input of its prediction.

        ``"labels"``: ``labels_key``, ``target_labels_key``, ``orthologs``, ``policy``, ``context_batch_key``, ``batch_key``,
        ``layer``, ``unknown``, and ``n_draws``, how often the target's cells are drawn anew for the intervals.

        ``"genes"``: ``truth``, a table of ``source`` and ``target``; ``source`` and ``target`` species, ``species_key``,
        ``organ_key``, ``drug_key`` (None without drugs), ``control``, ``normalize``, ``symbol_key``, ``genes`` (lists by name, scored
        apart), ``k``, ``n_top``, ``layer``.

    Returns
    -------
    A row for each method and score, with ``kind`` (``"model"``, ``"baseline"``, ``"ceiling"``) and

    - ``mean``, ``median``, ``sd`` and ``n`` over conditions, signatures or genes (labels: the score itself, over draws), after
      averaging over seeds and splits of the same one; ``ci_low`` and ``ci_high``, the bootstrap interval over them;
    - ``sd_seeds``, the standard deviation of the mean over seeds;
    - ``gain`` over ``best_baseline``, the strongest for this score, as the paired mean difference, positive where better, with
      ``gain_low`` and ``gain_high``. Better than no network at all is a method whose ``gain_low`` is above 0;
    - the ceilings, which are rows too: ``ceiling_split_half`` and ``ceiling_noise_free``
      (:func:`transverse.metrics.noise_ceiling`), ``ceiling_replicates``, ``ceiling_own_labels`` (a classifier trained on other
      cells of the target), ``ceiling_halves_of_...``.

    With ``return_scores``, that table and the scores.

    Raises
    ------
    ValueError
        If an argument is out of range or does not fit the task, a split leaks or holds nothing out, or a method cannot
        predict what was held out.
    KeyError
        If a column does not exist.
    TypeError
        If data or methods are of another type.

    Examples
    --------
    >>> import transverse as tv
    >>> def train_mine(train, seed):
    ...     tv.XTransferCDR.setup_anndata(train)
    ...     model = tv.XTransferCDR(train)
    ...     model.train(max_epochs=3)  # by default as many as the data need
    ...     return model
    >>> adata = tv.datasets.simulate_responses(n_contexts=2, n_perturbations=3, n_genes=30, n_cells_per_condition=20)
    >>> tv.pp.split_responses(adata, valid_size=0)
    >>> table = tv.benchmark(adata, {"mine": train_mine})
    >>> sorted(table["kind"].unique())
    ['baseline', 'ceiling', 'model']
    >>> axes = tv.pl.benchmark(table)
    """
    if task not in get_args(Task):
        raise ValueError(f"task={task!r} must be one of {', '.join(get_args(Task))}.")
    seeds = [seeds] if isinstance(seeds, Integral) else list(seeds)
    if not seeds or not all(isinstance(seed, Integral) for seed in seeds):
        raise ValueError(f"seeds must be whole numbers, at least one, but got {seeds!r}.")
    if not 0 < level < 1:
        raise ValueError(f"level={level!r} must be between 0 and 1.")
    if not isinstance(n_resamples, Integral) or n_resamples < 1:
        raise ValueError(f"n_resamples={n_resamples!r} must be a whole number of at least 1.")
    table_of, by = _TABLES[task]
    try:
        scores, over = table_of(data, as_mapping(models), baselines, seeds, **options)
    except TypeError as error:
        if "unexpected keyword argument" in str(error) and table_of.__name__ in str(error):
            raise TypeError(f"task={task!r} has no option {str(error).rsplit(' ', 1)[-1]}.") from None
        raise
    estimate = FirstOfDraws(level) if task == "labels" else MeanOfUnits(level, n_resamples)
    table = summary_table(scores, over, estimate, by)
    if task == "labels":
        # units are draws of the cells; what counts is how many cells were scored
        n_cells = scores[scores["draw"] == 0].groupby(["method", *by], dropna=False)["n"].first().rename("n")
        table = table.drop(columns="n").merge(n_cells.reset_index(), on=["method", *by], how="left")
    return (table, scores) if return_scores else table
