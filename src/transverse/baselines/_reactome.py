"""Expression profiles of the genes of a species over organs and drugs."""

from __future__ import annotations

import warnings

import pandas as pd
from anndata import AnnData

from transverse._reactome import check_design, condition_profiles, species_reactome
from transverse._validation import examples

from ._shared_features import Normalize, check_expression


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
    check_design(adata, keys, name)
    target_sum = None if normalize == "given" else target_sum
    profiles = condition_profiles(adata, list(keys.values()), layer=layer, target_sum=target_sum)
    if drug_key is None:
        enough = profiles.n_cells >= min_samples
        if not enough.any():
            raise ValueError(f"{name!r} has no entry with at least min_samples={min_samples} samples of an organ.")
        values, n = profiles.mean[enough].T, profiles.n_cells[enough]
        entries = pd.Index(profiles.keys[organ_key][enough])
    else:
        changes = species_reactome(profiles, control, min_samples, name)
        values, entries, n = changes.change, changes.entries, changes.n_treated.clip(max=changes.n_control)
    if (few := entries[n < 2]).size:
        shown = few if drug_key is None else (" / ".join(entry) for entry in few)
        warnings.warn(
            f"{len(few)} of the {len(entries)} entries of {name!r} rest on a single sample: {examples(shown)}. "
            "min_samples=2 leaves them out.",
            UserWarning,
            stacklevel=3,
        )
    return pd.DataFrame(values, index=adata.var_names.copy(), columns=entries)
