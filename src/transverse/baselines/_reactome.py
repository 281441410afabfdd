"""Expression profiles of the genes of a species over organs and drugs."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from transverse._validation import check_obs_key, examples, iter_rows

from ._shared_features import Normalize, check_expression, log_expression


def condition_means(
    adata: AnnData, keys: list[str], layer: str | None, normalize: Normalize, target_sum: float
) -> tuple[pd.DataFrame, pd.Series]:
    """Mean log expression (genes x conditions) of the samples of each condition, and the number of these."""
    groups = adata.obs[keys].astype(str).groupby(keys, sort=True)
    codes, conditions = groups.ngroup().to_numpy(), groups.size()
    sums, start = np.zeros((len(conditions), adata.n_vars)), 0
    for block in iter_rows(adata, layer, 1024):
        values = log_expression([block], None, normalize, target_sum)
        rows = np.arange(values.shape[0])
        members = sp.csr_matrix((np.ones(len(rows)), (codes[start + rows], rows)), shape=(len(conditions), len(rows)))
        part = members @ values
        sums += part.toarray() if sp.issparse(part) else part
        start += len(rows)
    means = pd.DataFrame(sums.T / conditions.to_numpy(), index=adata.var_names.copy(), columns=conditions.index)
    return means, conditions


def reactome(
    adata: AnnData,
    name: str,
    *,
    organ_key: str,
    drug_key: str | None,
    control: str,
    layer: str | None,
    normalize: Normalize,
    target_sum: float,
    min_samples: int,
) -> pd.DataFrame:
    """Entries (genes x organs, or genes x (organ, drug)) that at least ``min_samples`` samples of each kind carry."""
    check_expression(adata, layer, normalize, f"adata of {name!r}")
    keys = {"organ_key": organ_key} if drug_key is None else {"organ_key": organ_key, "drug_key": drug_key}
    for argument, key in keys.items():
        check_obs_key(adata, key, argument)
        if (missing := adata.obs[key].isna().to_numpy()).any():
            raise ValueError(
                f"obs[{key!r}] ({argument}) of {name!r} is missing for {int(missing.sum())} samples: "
                f"{examples(adata.obs_names[missing])}. Fill it in or remove the samples."
            )
    if drug_key is not None and not (adata.obs[drug_key].astype(str) == control).any():
        raise ValueError(
            f"{name!r} has no controls: control={control!r} is not in obs[{drug_key!r}], which has "
            f"{examples(sorted(set(adata.obs[drug_key].astype(str))))}."
        )
    means, n = condition_means(adata, list(keys.values()), layer, normalize, target_sum)
    if drug_key is None:
        entries = {organ: (means[organ], n[organ]) for organ in means}
    else:
        entries = {
            (organ, drug): (means[organ, drug] - means[organ, control], min(n[organ, drug], n[organ, control]))
            for organ, drug in means
            if drug != control and (organ, control) in n.index
        }
    entries = {entry: (values, n) for entry, (values, n) in entries.items() if n >= min_samples}
    if not entries:
        raise ValueError(
            f"{name!r} has no entry with at least min_samples={min_samples} samples"
            + (f" of a drug and {min_samples} controls of the same organ." if drug_key is not None else " of an organ.")
        )
    if few := [entry for entry, (_, n) in entries.items() if n < 2]:
        shown = (entry if drug_key is None else " / ".join(entry) for entry in few)
        warnings.warn(
            f"{len(few)} of the {len(entries)} entries of {name!r} rest on a single sample: {examples(shown)}. "
            "min_samples=2 leaves them out.",
            UserWarning,
            stacklevel=3,
        )
    names = (
        pd.Index(entries, name=organ_key)
        if drug_key is None
        else pd.MultiIndex.from_tuples(entries, names=keys.values())
    )
    return pd.DataFrame(np.stack([values for values, _ in entries.values()], axis=1), index=means.index, columns=names)
