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
            If there are no signatures, values or columns are missing or infinite, or gene names repeat.
        TypeError
            If ``adata`` is not an AnnData.

        Examples
        --------
        >>> import transverse as tv
        >>> sig = tv.datasets.simulate_signatures(n_drugs=20, n_genes=30, n_mechanisms=5)
        >>> baseline = tv.baselines.RidgeSignature().fit(
        ...     sig, perturbation_key="perturbation", cell_type_key="cell_type"
        ... )
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
            Signatures to predict from, of one or more cell types, in the layer that :meth:`fit` was given, if any. Those of
            the target itself are refused.
        target
            Cell type to predict. It may be one that is not in the training.

        Returns
        -------
        AnnData with a row for each perturbation in ``adata``, in sorted order: ``X`` on the scale of the input; ``obs`` with the
        perturbation, the target as the cell type, and ``n_sources``, the number of cell types in which ``adata`` has it.

        Raises
        ------
        ValueError
            If genes are missing, ``adata`` is empty or has the target's signatures, the baseline has not been fitted, or has
            nothing to learn the target from.
        KeyError
            If a column or the layer does not exist.

        Examples
        --------
        >>> import transverse as tv
        >>> sig = tv.datasets.simulate_signatures(n_drugs=20, n_genes=30, n_mechanisms=5)
        >>> is_test = sig.obs["perturbation"].isin(["D0001", "D0002"])
        >>> sources = sig[is_test & (sig.obs["cell_type"] != "C2")]
        >>> baseline = tv.baselines.RidgeSignature().fit(sig[~is_test])
        >>> pred = baseline.predict(sources, target="C2")
        >>> pred.obs["n_sources"].tolist()
        [2, 2]
        """
        if not hasattr(self, "_signatures"):
            raise ValueError(f"{type(self).__name__} has not been fitted. Call fit(adata) first.")
        if not isinstance(adata, AnnData):
            raise TypeError(f"adata must be an AnnData, but got {type(adata).__name__}.")
        target = str(target)
        check_obs_key(adata, self.perturbation_key, "perturbation_key")
        check_obs_key(adata, self.cell_type_key, "cell_type_key")
        if adata.n_obs == 0:
            raise ValueError("adata has no signatures.")
        if (adata.obs[self.cell_type_key].astype(str) == target).any():
            raise ValueError(f"adata has signatures of target={target!r}: the baseline would be shown the answer.")
        adata = align_genes(adata, self.var_names)
        check_finite(adata, self.layer, "adata")
        profiles = group_profiles(adata, [self.perturbation_key, self.cell_type_key], self.layer)
        rows, names, n_sources = [], [], []
        for name, group in profiles.keys.groupby(self.perturbation_key, sort=True):
            sources = {c: profiles.mean[i] for i, c in zip(group.index, group[self.cell_type_key], strict=True)}
            rows.append(self._predict(name, sources, target))
            names.append(name)
            n_sources.append(len(sources))
        obs = pd.DataFrame({self.perturbation_key: names, self.cell_type_key: target, "n_sources": n_sources})
        # text as objects, which every version of anndata can write
        keys = [self.perturbation_key, self.cell_type_key]
        obs[keys] = obs[keys].astype(object).astype("category")
        obs.index = pd.Index([f"{name}|{target}" for name in names], dtype=object)
        pred = AnnData(np.array(rows, dtype=np.float32), obs=obs, var=pd.DataFrame(index=self.var_names.astype(object)))
        pred.uns["prediction"] = {"method": type(self).__name__, "target": target, "scale": "that of the input"}
        return pred

    @abstractmethod
    def _predict(self, name: str, sources: dict[str, np.ndarray], target: str) -> np.ndarray:
        """The signature of a perturbation in the target from those in the sources."""

    def _agreement(self, source: str, target: str, name: str) -> float:
        """Mean correlation of two cell types' training signatures of other perturbations; 0 with none in common."""
        key = ("agreement", source, target)
        if key not in self._cache:
            common = [other for other, c in self._signatures if c == source and (other, target) in self._signatures]
            pairs = [np.array([self._signatures[other, c] for other in common]) for c in (source, target)]
            # a constant signature agrees with nothing
            values = np.nan_to_num(correlation(*pairs)) if common else np.empty(0)
            self._cache[key] = {other: i for i, other in enumerate(common)}, values
        rows, values = self._cache[key]
        if name in rows:
            values = np.delete(values, rows[name])
        return float(values.mean()) if len(values) else 0.0


class CopySource(SignatureBaseline):
    """The signature of one source cell type, as it is.

    Parameters
    ----------
    choice
        Which source, where there are several: ``"similar"``, whose training signatures correlate best with the target's; or
        ``"random"``.
    seed
        Seed of the random choice.

    Examples
    --------
    >>> import transverse as tv
    >>> sig = tv.datasets.simulate_signatures(n_drugs=20, n_genes=30, n_mechanisms=5)
    >>> is_test = sig.obs["perturbation"].isin(["D0001", "D0002"])
    >>> sources = sig[is_test & (sig.obs["cell_type"] != "C2")]
    >>> pred = tv.baselines.CopySource().fit(sig[~is_test]).predict(sources, target="C2")
    >>> pred.obs["perturbation"].tolist()
    ['D0001', 'D0002']
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

    Examples
    --------
    >>> import transverse as tv
    >>> sig = tv.datasets.simulate_signatures(n_drugs=20, n_genes=30, n_mechanisms=5)
    >>> is_test = sig.obs["perturbation"].isin(["D0001", "D0002"])
    >>> sources = sig[is_test & (sig.obs["cell_type"] != "C2")]
    >>> pred = tv.baselines.MeanOfSources(weights="similarity").fit(sig[~is_test]).predict(sources, target="C2")
    >>> pred.obs["perturbation"].tolist()
    ['D0001', 'D0002']
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

    Where the target has none, the mean of all training signatures of other cell types.

    Examples
    --------
    >>> import transverse as tv
    >>> sig = tv.datasets.simulate_signatures(n_drugs=20, n_genes=30, n_mechanisms=5)
    >>> is_test = sig.obs["perturbation"].isin(["D0001", "D0002"])
    >>> sources = sig[is_test & (sig.obs["cell_type"] != "C2")]
    >>> pred = tv.baselines.MeanSignature().fit(sig[~is_test]).predict(sources, target="C2")
    >>> pred.obs["perturbation"].tolist()
    ['D0001', 'D0002']
    """

    def _predict(self, name: str, sources: dict[str, np.ndarray], target: str) -> np.ndarray:
        names, own = self._of_target(target)
        rest = own[names != name] if (name, target) in self._signatures else own
        if len(rest):
            return rest.mean(axis=0)
        found = [signature for (_, c), signature in self._signatures.items() if c != target]
        if not found:
            raise ValueError(f"The training has no signature beside that of {name!r} in target={target!r}.")
        return np.mean(found, axis=0)

    def _of_target(self, target: str) -> tuple[np.ndarray, np.ndarray]:
        if target not in self._cache:
            names = [name for name, c in self._signatures if c == target]
            self._cache[target] = np.array(names), np.array([self._signatures[name, target] for name in names])
        return self._cache[target]


class RidgeSignature(SignatureBaseline):
    r"""Ridge regression from the mean of the sources to the target.

    With scores :math:`s` of a perturbation's mean signature over the source cell types, on the first :math:`K` principal components
    of the training signatures of all cell types but the target, and its signature :math:`y` in the target,
    :math:`\hat y = A s + b` minimises :math:`\sum \lVert y - A s - b \rVert^2 + \alpha \lVert A \rVert^2` over the training
    perturbations that were measured in both. With fewer than two of those, the sources of the training are all other cell types;
    and where the target has too few, it is trained on the other cell types, each predicted from the rest. A perturbation whose
    signature in the target is in the training is left out of its own prediction.

    Parameters
    ----------
    n_components
        :math:`K`; less where there are fewer signatures or genes.
    alpha
        Penalty, in units of the mean sum of squares of the components of :math:`s`.

    Examples
    --------
    >>> import transverse as tv
    >>> sig = tv.datasets.simulate_signatures(n_drugs=20, n_genes=30, n_mechanisms=5)
    >>> is_test = sig.obs["perturbation"].isin(["D0001", "D0002"])
    >>> sources = sig[is_test & (sig.obs["cell_type"] != "C2")]
    >>> pred = tv.baselines.RidgeSignature(n_components=5).fit(sig[~is_test]).predict(sources, target="C2")
    >>> pred.obs["perturbation"].tolist()
    ['D0001', 'D0002']
    """

    def __init__(self, n_components: int = 50, alpha: float = 0.1):
        if not isinstance(n_components, Integral) or n_components < 1:
            raise ValueError(f"n_components={n_components!r} must be a whole number of at least 1.")
        if not alpha > 0:
            raise ValueError(f"alpha={alpha!r} must be positive.")
        self.n_components, self.alpha = n_components, alpha

    def _predict(self, name: str, sources: dict[str, np.ndarray], target: str) -> np.ndarray:
        seen, used = name if (name, target) in self._signatures else None, tuple(sources)
        names, x, y = self._training(target, used)
        if (names != seen).sum() < 2:  # sources that the training does not have: from all of its others to the target
            used = tuple(c for c in self._cell_types if c != target)
            names, x, y = self._training(target, used)
        if (names != seen).sum() < 2:
            seen = used = None
            names, x, y = self._training(target, used)
        if len(names) < 2:
            raise ValueError(
                "Fewer than two training signatures have their perturbation in another cell type: nothing to learn "
                f"target={target!r} from."
            )
        key = ("ridge", target, used)
        ridge = self._cache.get(key) if seen is None else None
        if ridge is None:
            keep = names != seen
            x, y = x[keep], y[keep]
            length = ((x - x.mean(axis=0)) ** 2).sum() / x.shape[1]
            ridge = Ridge(alpha=self.alpha * (length or 1.0), solver="svd").fit(x, y)
            if seen is None:
                self._cache[key] = ridge
        scores = self._components(target).transform(np.mean(list(sources.values()), axis=0)[None])
        return ridge.predict(scores).ravel()

    def _training(self, target: str, sources: tuple[str, ...] | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Names, scores of the mean over the sources, and signatures in the target; without sources, of all others."""
        key = ("training", target, sources)
        if key not in self._cache:
            others = tuple(c for c in self._cell_types if c != target)
            pairs = [(target, sources)] if sources is not None else [(other, others) for other in others]
            rows = [row for one, from_ in pairs for row in self._pairs(one, from_)]
            names, x, y = zip(*rows, strict=True) if rows else ((), (), ())
            x = np.array(x).reshape(-1, len(self.var_names))
            x = self._components(target).transform(x) if len(x) else x
            self._cache[key] = np.array(names, dtype=object), x, np.array(y)
        return self._cache[key]

    def _pairs(self, target: str, sources: Sequence[str]) -> list[tuple[str, np.ndarray, np.ndarray]]:
        """Of training perturbations in the target and a source: name, mean over the sources, signature in the target."""
        pairs = []
        for (name, cell_type), signature in self._signatures.items():
            if cell_type == target:
                found = [self._signatures[name, s] for s in sources if s != target and (name, s) in self._signatures]
                if found:
                    pairs.append((name, np.mean(found, axis=0), signature))
        return pairs

    def _components(self, target: str) -> PCA:
        """Components of the training signatures of all other cell types: the target's might hold the answer."""
        key = ("components", target)
        if key not in self._cache:
            signatures = np.array([signature for (_, c), signature in self._signatures.items() if c != target])
            n = min(self.n_components, *signatures.shape)
            self._cache[key] = PCA(n, svd_solver="full").fit(signatures)
        return self._cache[key]
