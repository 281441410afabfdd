"""The steps that recipes share: check, label, take the cells, choose genes, and put the result together."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real

import numpy as np
import pandas as pd
import scanpy as sc
import scipy.sparse as sp
from anndata import AnnData

from transverse._validation import check_counts, check_log_normalized, check_unique_var_names, examples, iter_rows
from transverse.pp._perturbations import canonical, clean, parts
from transverse.pp._split_design import labels as read_labels

from ._checks import check_choice, check_whole
from ._recipe_splits import CONTROL, Plan, Rename, assign_sides, check_plan


def check_numbers(low: int = 0, **numbers: int) -> None:
    """Refuse what is no whole number of at least `low`, by the names of the arguments."""
    for key, value in numbers.items():
        check_whole(key, value, low)


def check_split_options(split: str, **shares: float) -> None:
    """Refuse an unknown split, and shares that are not above 0 and below 1."""
    check_choice("split", split, ("paper", "disjoint"))
    for key, value in shares.items():
        if not isinstance(value, Real) or not 0 < value < 1:
            raise ValueError(f"{key}={value!r} must be above 0 and below 1.")


def check_input(adata: AnnData, obs: Mapping[str, str | None], var: Mapping[str, str | None]) -> None:
    """Check that there is what the recipe reads; `obs` and `var` map arguments to columns, None asks for none."""
    if not isinstance(adata, AnnData):
        raise TypeError(f"adata must be an AnnData, but got {type(adata).__name__}.")
    missing, there = [], []
    for name, wanted in {"obs": obs, "var": var}.items():
        columns = getattr(adata, name).columns
        lacking = [f"{argument}={key!r}" for argument, key in wanted.items() if key is not None and key not in columns]
        if lacking:
            missing.append(f"{', '.join(lacking)} in adata.{name}")
            there.append(f"adata.{name} has: {examples(columns, 30)}.")
    if missing:
        raise KeyError(f"Columns are missing: {'; '.join(missing)}. {' '.join(there)}")
    check_unique_var_names(adata)
    if not adata.obs_names.is_unique:
        repeated = adata.obs_names[adata.obs_names.duplicated()].unique()
        raise ValueError(
            f"adata.obs_names must be unique, but these repeat: {examples(repeated)}. Call adata.obs_names_make_unique() "
            "first."
        )


def check_scale(adata: AnnData, layer: str | None, counts: bool) -> None:
    """Raise a ValueError unless the matrix holds raw counts, or log-normalised values."""
    if counts:
        check_counts(adata, layer)
        return
    check_log_normalized(adata, layer)
    smallest = min(block.min() for block in iter_rows(adata, layer))
    if smallest < 0:
        raise ValueError(
            f"The expression must be log-normalised, but has negative values (smallest: {smallest:g}), as z-scores have. "
            "Take the values from before they were scaled."
        )


def gene_namer(control: str, delimiter: str) -> Rename:
    """Names of genetic perturbations: the control is ``"control"``, what joins a combination is ``"+"``."""

    def rename(name: str) -> str:
        name = clean(name, control, delimiter)
        return CONTROL if name == control else canonical("+".join(parts(name, delimiter)))

    return rename


def drug_namer(control: str, first_word: bool) -> Rename:
    """Names of drugs: the vehicle is ``"control"``; ``"(+)-JQ1"`` is ``"JQ1"``, since ``"+"`` joins combinations."""

    def rename(name: str) -> str:
        name = name.strip()
        word = name.partition(" ")[0]
        if control in (name, word):
            return CONTROL
        return canonical((word if first_word else name).removeprefix("(+)-"))

    return rename


def label_cells(
    adata: AnnData, perturbation_key: str, control: str, rename: Rename, context: np.ndarray
) -> pd.DataFrame:
    """Of each cell the name of its perturbation and its cell type, as categories."""
    codes, names = read_labels(adata, perturbation_key, "perturbation_key")
    renamed = [rename(name) for name in names]
    if CONTROL not in renamed:
        raise ValueError(
            f"control={control!r} is not in adata.obs[{perturbation_key!r}], which has: {examples(names)}. Name the label "
            "of the cells that are not perturbed."
        )
    if control != CONTROL and CONTROL in names:
        raise ValueError(
            f"adata.obs[{perturbation_key!r}] has {CONTROL!r} beside control={control!r}. If both are controls, give them "
            f"one label; if not, call {CONTROL!r} something else, since the result names its controls so."
        )
    if len(set(renamed)) == 1:
        raise ValueError(f"adata.obs[{perturbation_key!r}] has no perturbation but the control {control!r}.")
    perturbation = pd.Categorical(np.array(renamed, dtype=object)[codes])
    return pd.DataFrame({"perturbation": perturbation, "cell_type": pd.Categorical(context)}, index=adata.obs_names)


def cell_types(adata: AnnData, key: str) -> np.ndarray:
    """The cell type of each cell, as text."""
    codes, names = read_labels(adata, key, "cell_type_key")
    return np.array(names, dtype=object)[codes]


def treated_names(labels: pd.DataFrame) -> list[str]:
    """Names of the perturbations that have cells, sorted."""
    return sorted(set(labels["perturbation"].to_numpy()) - {CONTROL})


def take(adata: AnnData, cells: np.ndarray, layer: str | None) -> AnnData:
    """These cells with the matrix in memory in single precision, and of the rest only `obs` and `var`."""
    matrix = (adata.X if layer is None else adata.layers[layer])[cells]
    matrix = sp.csr_matrix(matrix, dtype=np.float32) if sp.issparse(matrix) else np.array(matrix, dtype=np.float32)
    return AnnData(matrix, obs=_tidy(adata.obs.loc[cells]), var=adata.var.copy())


def _tidy(table: pd.DataFrame) -> pd.DataFrame:
    categorical = [key for key in table.columns if isinstance(table[key].dtype, pd.CategoricalDtype)]
    return table.assign(**{key: table[key].cat.remove_unused_categories() for key in categorical})


def filter_counts(adata: AnnData, min_genes: int, min_cells: int) -> AnnData:
    """Cells with enough detected genes, then genes detected in enough cells, then such cells again."""
    adata = _filter_cells(adata, min_genes)
    genes, n_cells = sc.pp.filter_genes(adata, min_cells=min_cells, inplace=False)
    if not genes.any():
        raise ValueError(
            f"No gene is detected in min_cells={min_cells} cells (most: {int(n_cells.max())}). Lower min_cells."
        )
    return _filter_cells(adata[:, genes].copy(), min_genes)


def _filter_cells(adata: AnnData, min_genes: int, argument: str = "min_genes") -> AnnData:
    cells, n_genes = sc.pp.filter_cells(adata, min_genes=min_genes, inplace=False)
    if not cells.any():
        raise ValueError(
            f"No cell has {argument}={min_genes} detected genes (most: {int(n_genes.max())}). Lower {argument}."
        )
    return adata[cells].copy()


def normalize(adata: AnnData, n_top_genes: int, min_top_genes: int) -> AnnData:
    """Logarithms of the counts per median total, of the most variable genes; the counts go to a layer."""
    check_n_genes(adata, n_top_genes, "n_top_genes")
    logs = adata.copy()
    sc.pp.normalize_total(logs)
    sc.pp.log1p(logs)
    top = top_genes(logs, n_top_genes)
    result = logs[:, top].copy()
    result.layers["counts"] = adata.X[:, top]
    result.var["highly_variable"] = True
    return _filter_cells(result, min_top_genes, "min_top_genes")


def check_n_genes(adata: AnnData, n: int, argument: str) -> None:
    if n > adata.n_vars:
        raise ValueError(f"{argument}={n}, but there are only {adata.n_vars} genes to choose from. Lower {argument}.")


def top_genes(adata: AnnData, n: int) -> np.ndarray:
    """Which genes are the most variable, by scanpy's default flavour; a few more where genes tie."""
    return sc.pp.highly_variable_genes(adata, n_top_genes=n, inplace=False)["highly_variable"].to_numpy()


def fill_genes(adata: AnnData, perturbed: np.ndarray, n: int) -> np.ndarray:
    """Which of the genes that are not perturbed are the most variable, as many as make `n` with the perturbed ones."""
    dispersion = sc.pp.highly_variable_genes(adata, inplace=False)["dispersions_norm"].to_numpy()
    others = np.flatnonzero(~perturbed)
    order = np.argsort(-np.nan_to_num(dispersion[others], nan=-np.inf), kind="stable")
    top = np.zeros(adata.n_vars, dtype=bool)
    top[others[order[: n - int(perturbed.sum())]]] = True
    return top


def keep_genes(adata: AnnData, perturbed: np.ndarray, top: np.ndarray) -> AnnData:
    """The perturbed and the most variable genes, and in `var` which are which."""
    genes = perturbed | top
    result = adata[:, genes].copy()
    result.var["perturbed"] = perturbed[genes]
    result.var["highly_variable"] = top[genes]
    return result


def symbols_of(adata: AnnData, gene_key: str | None, names: list[str]) -> pd.Index:
    """Symbols of the genes, of which some must be among the perturbed."""
    symbols = pd.Index((adata.var_names if gene_key is None else adata.var[gene_key]).astype(str), dtype=object)
    if not is_perturbed(symbols, names).any():
        where = "adata.var_names" if gene_key is None else f"adata.var[{gene_key!r}]"
        raise ValueError(
            f"None of the perturbed genes ({examples(names, 3)}) is in {where}, which has: {examples(symbols)}. Name the "
            "column with symbols, or pass gene_key=None for the names themselves."
        )
    return symbols


def is_perturbed(symbols: pd.Index, names: list[str]) -> np.ndarray:
    """Which genes are perturbed, alone or in a combination."""
    return symbols.isin(sorted({part for name in names for part in parts(name)}))


def finish(
    adata: AnnData,
    labels: pd.DataFrame,
    plan: Plan,
    control_share: float,
    rng: np.random.Generator,
    recipe: Mapping[str, object],
) -> AnnData:
    """Write labels, sides and the recipe into the prepared data."""
    check_plan(labels, plan, " after filtering")
    columns = {"perturbation": pd.Categorical(labels["perturbation"].to_numpy(dtype=object))}
    columns["cell_type"] = pd.Categorical(labels["cell_type"].to_numpy(dtype=object))
    columns["split"] = assign_sides(labels, plan, control_share, rng)
    obs = adata.obs.copy()
    for key, values in columns.items():
        if key in obs and obs[key].astype(str).tolist() != values.astype(str).tolist():
            obs[f"{key}_original"] = obs[key]
        obs[key] = values
    adata.obs = obs
    there = set(treated_names(labels))
    held = {"holdout": plan.test, "valid": plan.valid}
    recipe = {**recipe, **{key: [name for name in names if name in there] for key, names in held.items()}}
    # None and empty lists cannot be read back from h5ad as they were
    recipe = {key: value for key, value in recipe.items() if value not in (None, [])}
    adata.uns["recipe"] = {k: np.array(v, dtype=object) if isinstance(v, list) else v for k, v in recipe.items()}
    adata.uns["log1p"] = {}  # scanpy's sign that these are logarithms, without its None
    return adata
