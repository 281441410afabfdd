"""A signature in one cell type from signatures of the same perturbation in others."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from numbers import Integral
from typing import Literal, Self

import numpy as np
import pandas as pd
from anndata import AnnData
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge

from transverse._groups import group_profiles
from transverse._validation import align_genes, check_finite, check_obs_key, check_unique_var_names
from transverse.metrics._profiles import correlation


class SignatureBaseline(ABC):
    """A predictor of signatures. Parameters of :meth:`fit` and :meth:`predict` are those of the models."""

    def fit(
        self,
        adata: AnnData,
        *,
        perturbation_key: str = "perturbation",
        cell_type_key: str = "cell_type",
        layer: str | None = None,
    ) -> Self:
        """Average the training signatures of every perturbation and cell type.

        Parameters
        ----------
        adata
            Signatures of the training, perturbations x genes. The grid of perturbations and cell types may have gaps; several
            signatures of one pair (doses, times, replicates) are averaged.
        perturbation_key, cell_type_key
            Columns of ``obs``.
        layer
            Layer with the signatures instead of ``X``.

        Returns
        -------
        The baseline itself. ``adata`` is not changed.

        Raises
        ------
        KeyError
            If a column or the layer does not exist.
        ValueError
            If there are no signatures, values are missing or infinite, or gene names repeat.
        """
        if not isinstance(adata, AnnData):
            raise TypeError(f"adata must be an AnnData, but got {type(adata).__name__}.")
        for key, argument in ((perturbation_key, "perturbation_key"), (cell_type_key, "cell_type_key")):
            check_obs_key(adata, key, argument)
        if adata.n_obs == 0:
            raise ValueError("adata has no signatures.")
        check_unique_var_names(adata)
        check_finite(adata, layer, "adata")
        self.perturbation_key, self.cell_type_key, self.layer = perturbation_key, cell_type_key, layer
        self.var_names = adata.var_names.copy()
        profiles = group_profiles(adata, [perturbation_key, cell_type_key], layer)
        self._signatures = dict(zip(profiles.keys.itertuples(index=False, name=None), profiles.mean, strict=True))
        self._cell_types = sorted({cell_type for _, cell_type in self._signatures})
        self._cache: dict = {}
        return self

    def predict(self, adata: AnnData, target: str) -> AnnData:
        """Predict the signatures of perturbations in a cell type from those in others.

        Parameters
        ----------
        adata
            Signatures to predict from, of one or more cell types. Those of the target itself are refused.
        target
            Cell type to predict.

        Returns
        -------
        AnnData with a row for each perturbation in ``adata``, in sorted order: ``X`` on the scale of the input; ``obs`` with the
        perturbation, the target as the cell type, and ``n_sources``, the number of cell types that it was predicted from.

        Raises
        ------
        ValueError
            If genes are missing, ``adata`` is empty or has the target's signatures, the baseline has not been fitted, or has
            nothing to learn the target from.
        KeyError
            If a column or the target is unknown.
        """
        if not hasattr(self, "_signatures"):
            raise ValueError(f"{type(self).__name__} has not been fitted. Call fit(adata) first.")
        check_obs_key(adata, self.perturbation_key, "perturbation_key")
        check_obs_key(adata, self.cell_type_key, "cell_type_key")
        if adata.n_obs == 0:
            raise ValueError("adata has no signatures.")
        adata = align_genes(adata, self.var_names)
        check_finite(adata, self.layer, "adata")
        if (adata.obs[self.cell_type_key].astype(str) == target).any():
            raise ValueError(f"adata has signatures of target={target!r}: the baseline would be shown the answer.")
        profiles = group_profiles(adata, [self.perturbation_key, self.cell_type_key], self.layer)
        rows, names, n_sources = [], [], []
        for name, group in profiles.keys.groupby(self.perturbation_key, sort=True):
            sources = {c: profiles.mean[i] for i, c in zip(group.index, group[self.cell_type_key], strict=True)}
            rows.append(self._predict(name, sources, target))
            names.append(name)
            n_sources.append(len(sources))
        obs = pd.DataFrame({self.perturbation_key: names, self.cell_type_key: target, "n_sources": n_sources})
        obs = obs.astype({self.perturbation_key: "category", self.cell_type_key: "category"})
        obs.index = pd.Index([f"{name}|{target}" for name in names], dtype=object)
        pred = AnnData(np.array(rows, dtype=np.float32), obs=obs, var=pd.DataFrame(index=self.var_names.copy()))
        pred.uns["prediction"] = {"method": type(self).__name__, "target": target, "scale": "that of the input"}
        return pred

    @abstractmethod
    def _predict(self, name: str, sources: dict[str, np.ndarray], target: str) -> np.ndarray:
        """The signature of a perturbation in the target from those in the sources."""

    def _agreement(self, source: str, target: str, name: str) -> float:
        """Mean correlation of two cell types' training signatures of other perturbations; 0 with none in common."""
        pairs = [
            (signature, self._signatures[other, target])
            for (other, c), signature in self._signatures.items()
            if c == source and other != name and (other, target) in self._signatures
        ]
        if not pairs:
            return 0.0
        return float(np.nanmean(correlation(*(np.array(side) for side in zip(*pairs, strict=True)))))


class CopySource(SignatureBaseline):
    """The signature of one source cell type, as it is.

    Parameters
    ----------
    choice
        Which source, where there are several: ``"similar"``, whose training signatures correlate best with the target's; or
        ``"random"``.
    seed
        Seed of the random choice.
    """

    def __init__(self, choice: Literal["similar", "random"] = "similar", seed: int = 0):
        if choice not in ("similar", "random"):
            raise ValueError(f"choice={choice!r} must be 'similar' or 'random'.")
        self.choice, self.seed = choice, seed

    def _predict(self, name: str, sources: dict[str, np.ndarray], target: str) -> np.ndarray:
        names = list(sources)
        if self.choice == "random":
            # the same choice whatever else is predicted with it
            rng = np.random.default_rng([self.seed, *f"{name}|{target}".encode()])
            return sources[names[rng.integers(len(names))]]
        return sources[max(names, key=lambda source: self._agreement(source, target, name))]


class MeanOfSources(SignatureBaseline):
    """The mean of the source cell types' signatures.

    Parameters
    ----------
    weights
        ``"uniform"``, or ``"similarity"``: in proportion to the correlation with the target over the other training perturbations, if
        positive.
    """

    def __init__(self, weights: Literal["uniform", "similarity"] = "uniform"):
        if weights not in ("uniform", "similarity"):
            raise ValueError(f"weights={weights!r} must be 'uniform' or 'similarity'.")
        self.weights = weights

    def _predict(self, name: str, sources: dict[str, np.ndarray], target: str) -> np.ndarray:
        weights = None
        if self.weights == "similarity":
            weights = np.maximum([self._agreement(source, target, name) for source in sources], 0)
            weights = weights if weights.sum() > 0 else None
        return np.average(list(sources.values()), axis=0, weights=weights)


class MeanSignature(SignatureBaseline):
    """The mean of the target's training signatures of other perturbations, whichever is asked for.

    Where the target has none, the mean of all training signatures.
    """

    def _predict(self, name: str, sources: dict[str, np.ndarray], target: str) -> np.ndarray:
        own = [signature for (other, c), signature in self._signatures.items() if c == target and other != name]
        return np.mean(own or list(self._signatures.values()), axis=0)


class RidgeSignature(SignatureBaseline):
    r"""Ridge regression from the mean of the sources to the target, on principal components.

    With scores :math:`s` of a perturbation's mean signature over the source cell types and :math:`t` of that in the target, on the
    first :math:`K` components of all training signatures, :math:`\hat t = A s + b` minimises
    :math:`\sum \lVert t - A s - b \rVert^2 + \alpha \lVert A \rVert^2` over the training perturbations that were measured in both.
    With fewer than two of those for the target, it is trained on all cell types, each predicted from the others.

    Parameters
    ----------
    n_components
        :math:`K`; less where there are fewer signatures or genes.
    alpha
        Penalty, in units of the mean sum of squares of the components of :math:`s`.
    """

    def __init__(self, n_components: int = 50, alpha: float = 0.1):
        if not isinstance(n_components, Integral) or n_components < 1:
            raise ValueError(f"n_components={n_components!r} must be a whole number of at least 1.")
        if not alpha > 0:
            raise ValueError(f"alpha={alpha!r} must be positive.")
        self.n_components, self.alpha = n_components, alpha

    def _pairs(self, target: str, sources: Sequence[str], name: str | None) -> list[tuple[np.ndarray, np.ndarray]]:
        """Mean over the sources, and signature in the target, of training perturbations other than ``name``."""
        pairs = []
        for (other, cell_type), signature in self._signatures.items():
            if cell_type == target and other != name:
                found = [self._signatures[other, s] for s in sources if s != target and (other, s) in self._signatures]
                if found:
                    pairs.append((np.mean(found, axis=0), signature))
        return pairs

    def _training(self, target: str, sources: Sequence[str], name: str | None) -> list[tuple[np.ndarray, np.ndarray]]:
        own = self._pairs(target, sources, name)
        if len(own) > 1:
            return own
        return [pair for t in self._cell_types if t != target for pair in self._pairs(t, self._cell_types, None)]

    def _predict(self, name: str, sources: dict[str, np.ndarray], target: str) -> np.ndarray:
        # its own signature in the target is never learnt from, should it be in the training
        excluded = name if (name, target) in self._signatures else None
        key = (target, tuple(sources), excluded)
        pca = self._components()
        if key not in self._cache:
            pairs = self._training(target, tuple(sources), excluded)
            if len(pairs) < 2:
                raise ValueError(
                    "Fewer than two training signatures have their perturbation in another cell type: nothing to learn "
                    f"target={target!r} from."
                )
            x, y = (pca.transform(np.array(side)) for side in zip(*pairs, strict=True))
            length = ((x - x.mean(axis=0)) ** 2).sum() / x.shape[1]
            self._cache[key] = Ridge(alpha=self.alpha * (length or 1.0)).fit(x, y)
        scores = self._cache[key].predict(pca.transform(np.mean(list(sources.values()), axis=0)[None]))
        return pca.inverse_transform(scores)[0]

    def _components(self) -> PCA:
        if "pca" not in self._cache:
            signatures = np.array(list(self._signatures.values()))
            n = min(self.n_components, *signatures.shape)
            self._cache["pca"] = PCA(n, svd_solver="full").fit(signatures)
        return self._cache["pca"]
