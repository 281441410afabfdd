"""Which organs and drugs to measure next."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

import numpy as np
import pandas as pd
from scipy.special import entr

# organs and level of genes tell as much as two shared conditions; a further eight, and half of the rest is carried over
_OTHER_EVIDENCE, _HALF = 2.0, 8.0


class ExperimentMixin:
    """Suggestions of experiments."""

    def suggest_experiments(
        self,
        n: int = 5,
        species: str | Sequence[str] | None = None,
        *,
        ambiguity_weight: float = 1.0,
        noise: float | None = None,
    ) -> pd.DataFrame:
        r"""Organs and drugs that, measured next, would tell most about all that was not measured.

        The change under drug :math:`k` in organ :math:`o` of species :math:`s` is taken as a sum of what belongs to the drug, the
        organ, and both together, independent and of variances :math:`v_a, v_b, v_c` over genes, which are those of the
        measured changes; a share :math:`q` of it can be told from the other species, by the map of genes:

        .. math::

            \mathrm{cov}[(s,o,k), (s',o',k')] &= (v_a [k{=}k'] + v_b [o{=}o'] + v_c [o{=}o', k{=}k'])
                \cdot \begin{cases} 1 & s = s' \\ q & s \ne s' \end{cases}, \\
            q &= \frac{2 + n}{10 + n},

        with the number :math:`n` of organs and drugs that were measured in more than one species: the more, the less ambiguous the
        map. Given what was measured, with the variance :math:`v_n` of noise, the experiment is chosen after which the least
        variance is left, taken as measured, and so on: a batch does not measure the same thing twice, but has species measure
        the same where that helps to map genes. The paper has the idea only; this is ours.

        Parameters
        ----------
        n
            How many to suggest.
        species
            Species in which experiments are possible; by default all.
        ambiguity_weight
            How much more genes count that the model cannot map to one gene of another species: a gene has weight 1 + this times
            the entropy of its assignment, relative to its largest. 0: all count alike.
        noise
            :math:`v_n`, in units of the mean square of all changes; by default a quarter of what is neither the drug's nor the organ's.

        Returns
        -------
        Table in order of choice: ``species``, ``organ``, ``drug``, ``gain`` (share of the variance that remained before the first
        choice), ``variance`` (share of it that is this experiment's own), in how many organs the drug and with how many drugs
        the organ was measured in any species (``n_organs_of_drug``, ``n_drugs_of_organ``), the species that have it
        (``measured_in``), and the ``reason`` in words. Fewer rows where less is left to measure.

        Raises
        ------
        ValueError
            If the model has no drugs, or an argument is out of range.
        KeyError
            If a species is unknown.

        Examples
        --------
        >>> table = model.suggest_experiments(n=1, species="rat")
        >>> table[["species", "organ", "drug"]].to_numpy().tolist()
        [['rat', 'brain', 'drug A']]
        """
        self._check_if_trained(warn=False)
        if len(self.drugs_) < 2:
            raise ValueError("The model was set up without drugs: there is nothing to suggest.")
        if not isinstance(n, Integral) or n < 1:
            raise ValueError(f"n={n!r} must be a whole number of at least 1.")
        if not ambiguity_weight >= 0:
            raise ValueError(f"ambiguity_weight={ambiguity_weight!r} must not be negative.")
        wanted = self.species_ if species is None else [species] if isinstance(species, str) else list(species)
        wanted = [self._species_of(name) for name in wanted]
        measured = np.asarray(self.is_measured_)
        cells = np.argwhere(np.ones_like(measured))
        variances = self._variances(ambiguity_weight)
        if noise is not None:
            if not noise > 0:
                raise ValueError(f"noise={noise!r} must be positive.")
            variances["noise"] = float(noise)
        observed = measured[tuple(cells.T)]
        chosen, rows = list(np.flatnonzero(observed)), []
        possible = ~observed & np.isin(cells[:, 0], wanted)
        now = measured.copy()
        total = None
        while len(rows) < n and possible.any():
            times = now.sum(axis=0)
            n_shared = int((times > 1).sum())
            makes_shared = times[tuple(cells[:, 1:].T)] == 1
            before = np.trace(self._left(cells, variances, n_shared, chosen))
            total = before if total is None else total
            gains, own = np.full(len(cells), -np.inf), np.zeros(len(cells))
            for shared in (False, True):
                which = possible & (makes_shared == shared)
                if which.any():
                    left = self._left(cells, variances, n_shared + shared, chosen)
                    variance = np.diagonal(left)
                    after = np.trace(left) - (left**2).sum(axis=1) / (variance + variances["noise"])
                    gains[which], own[which] = before - after[which], variance[which]
            # of equally good ones, in the species with the fewest
            few = -now.sum(axis=(1, 2))[cells[:, 0]] * 1e-9 * total
            i = int((gains + few).argmax())
            s, o, k = cells[i]
            rows.append(
                {
                    "species": self.species_[s],
                    "organ": self.organs_[o],
                    "drug": self.drugs_[k + 1],
                    "gain": gains[i] / total if total > 0 else 0.0,
                    "variance": own[i] / total if total > 0 else 0.0,
                    "n_organs_of_drug": int(measured[:, :, k].any(axis=0).sum()),
                    "n_drugs_of_organ": int(measured[:, o].any(axis=0).sum()),
                    "measured_in": ", ".join(self.species_[j] for j in np.flatnonzero(measured[:, o, k])),
                }
            )
            rows[-1]["reason"] = _reason(rows[-1], rows[:-1], len(self.organs_), len(self.drugs_) - 1)
            possible[i] = False
            now[s, o, k] = True
            chosen.append(i)
        return pd.DataFrame(
            rows,
            columns=[
                "species",
                "organ",
                "drug",
                "gain",
                "variance",
                "n_organs_of_drug",
                "n_drugs_of_organ",
                "measured_in",
                "reason",
            ],
        )

    @staticmethod
    def _left(cells: np.ndarray, variances: dict[str, float], n_shared: int, chosen: list[int]) -> np.ndarray:
        """Covariance that is left after the chosen were measured."""
        covariance = condition_covariance(cells, variances, share_carried(n_shared))
        return condition_on(covariance, np.array(chosen, dtype=int), variances["noise"])

    def _variances(self, ambiguity_weight: float) -> dict[str, float]:
        """Mean products over genes of changes that have drug or organ in common, by what is measured; units of the training."""
        n_organs, n_drugs = len(self.organs_), len(self.drugs_) - 1
        measured = np.asarray(self.is_measured_).reshape(len(self.species_), -1)
        organ, drug = np.divmod(np.arange(n_organs * n_drugs), n_drugs)
        same_organ, same_drug = organ[:, None] == organ, drug[:, None] == drug
        found: dict[str, list] = {"all": [], "drug": [], "organ": [], "neither": []}
        for s, weights in enumerate(self._ambiguity(ambiguity_weight)):
            x = np.nan_to_num(self.features_[self._gene_species == s][:, : n_organs * n_drugs])
            products = (x * weights[:, None]).T @ x / weights.sum()
            pairs = np.outer(measured[s], measured[s])
            found["all"].append(products[pairs & same_organ & same_drug])
            found["drug"].append(products[pairs & same_drug & ~same_organ])
            found["organ"].append(products[pairs & same_organ & ~same_drug])
            found["neither"].append(products[pairs & ~same_organ & ~same_drug])
        mean = {key: np.mean(both) if len(both := np.concatenate(x)) else np.nan for key, x in found.items()}
        total = mean["all"] if mean["all"] > 0 else 1.0
        common = max(np.nan_to_num(mean["neither"]), 0.0)
        # where nothing tells, half of the variance is the drug's
        of_drug = _within(mean["drug"] - common, total, total / 2)
        of_organ = _within(mean["organ"] - common, total - of_drug, 0.0)
        rest = max(total - of_drug - of_organ, 0.1 * total)
        # noise cannot be told from what belongs to both: a quarter
        return {"drug": of_drug, "organ": of_organ, "both": 0.75 * rest, "noise": 0.25 * rest}

    def _ambiguity(self, weight: float) -> list[np.ndarray]:
        """Weights of the genes of every species, 1 and more for genes that could be mapped to many."""
        sizes = [int((self._gene_species == s).sum()) for s in range(len(self.species_))]
        if weight == 0:
            return [np.ones(size) for size in sizes]
        weights = []
        for s in range(len(sizes)):
            entropies = []
            for t in range(len(sizes)):
                if s != t:  # of the likeliest genes, which hold nearly all
                    shares = self._soft_map(s, t, 0.02)
                    entropy = shares.copy()
                    entropy.data = entr(shares.data)
                    entropies.append(np.asarray(entropy.sum(axis=1)).ravel() / np.log(sizes[t]))
            weights.append(1 + weight * np.mean(entropies, axis=0))
        return weights


def condition_covariance(cells: np.ndarray, variances: dict[str, float], carried: float) -> np.ndarray:
    """Covariance of changes, shape ``(n_cells, n_cells)``; ``cells`` are species, organ and drug as numbers."""
    species, organ, drug = ((column[:, None] == column) for column in cells.T)
    within = variances["drug"] * drug + variances["organ"] * organ + variances["both"] * (organ & drug)
    return np.where(species, 1.0, carried) * within


def share_carried(n_shared: int) -> float:
    """Share of a change that the map of genes carries to another species, by the conditions that species have in common."""
    return (_OTHER_EVIDENCE + n_shared) / (_OTHER_EVIDENCE + n_shared + _HALF)


def condition_on(covariance: np.ndarray, observed: np.ndarray, noise: float) -> np.ndarray:
    """Covariance that is left after noisy measurements of some."""
    if not len(observed):
        return covariance
    between = covariance[:, observed]
    inner = covariance[np.ix_(observed, observed)] + noise * np.eye(len(observed))
    return covariance - between @ np.linalg.solve(inner, between.T)


def _reason(row: dict, before: list[dict], n_organs: int, n_drugs: int) -> str:
    """Why an experiment is worth making, in words."""
    if row["measured_in"]:
        found = f"measured in {row['measured_in']}, not in {row['species']}"
    else:
        found = "measured in no species"
    drug = sum(other["drug"] == row["drug"] for other in before)
    also = f", and {drug} suggested before" if drug else ""
    return (
        f"{found}; {row['drug']} in {row['n_organs_of_drug']} of {n_organs} organs{also}; "
        f"{row['organ']} with {row['n_drugs_of_organ']} of {n_drugs} drugs"
    )


def _within(value: float, high: float, otherwise: float) -> float:
    """A value between 0 and a limit, or another where there is none."""
    return otherwise if np.isnan(value) else float(min(max(value, 0.0), high))
