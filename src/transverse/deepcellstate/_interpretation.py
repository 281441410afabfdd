from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Literal

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from transverse._validation import examples

from ._gene_importance import GeneImportanceMixin, check_names, check_whole
from ._importance import ascend


class InterpretationMixin(GeneImportanceMixin):
    """Which genes predictions rest on, what regulators would change, and what the latent space holds of perturbations."""

    def get_regulator_targets(
        self,
        gene: str | Sequence[str],
        cell_type: str,
        *,
        n_steps: int = 10,
        step_size: float = 1.0,
        penalty: float = 5.0,
        start_range: float = 2e-4,
        n_top: int = 50,
        use_skip: bool = True,
        seed: int = 0,
        batch_size: int = 512,
    ) -> pd.DataFrame:
        r"""Genes that rise with a regulator in a cell type, such as targets of a transcription factor.

        From a profile about 0, uniform in :math:`\pm` ``start_range``, the input is moved up the gradient until the decoder
        :math:`D_c` of the cell type predicts a high value of the regulator :math:`r`, and not by inputs that are high
        everywhere:

        .. math::

            x \leftarrow x + \eta \frac{\nabla f}{\lVert \nabla f \rVert_2}, \qquad
            f(x) = D_c(E(x))_r - \frac{\lambda}{G} \sum_{g=1}^{G} x_g.

        Predicted targets are the genes highest in the output :math:`D_c(E(x))` for the last input, as in the reference.

        Parameters
        ----------
        gene
            Regulator, or several. Each starts from the same profile, and its result does not depend on the others.
        cell_type
            Cell type to predict; it must have a trained decoder.
        n_steps, step_size, penalty
            Number of steps, their length :math:`\eta`, and the weight :math:`\lambda` of the mean input.
        start_range
            Largest absolute value of the profile to start from.
        n_top
            Predicted targets of a regulator.
        use_skip
            Whether the skip connection takes part: the input of a gene then raises its output directly, that of the
            regulator first.
        seed
            Of the profile to start from.
        batch_size
            Regulators in a mini-batch; does not change the result.

        Returns
        -------
        A row per regulator and gene, by regulator in the order given, then by rank:

        - ``regulator``, ``gene``
        - ``output``: predicted signature for the last input
        - ``input``: the last input
        - ``rank``: 1 for the highest output; 0 for the regulator itself, which is no target of its own (reference: it may
          be one)
        - ``is_target``: whether the rank is 1 to ``n_top``

        Input, output, start and steps are in units of the model's scale, in which the largest absolute value of the training
        data is 1; times ``float(model.module.scale)`` they are on that of the signatures. Outputs stay within -1 and 1, inputs
        need not.

        Raises
        ------
        RuntimeError
            If the model is not trained.
        KeyError
            If a regulator is not among the model's genes, or the cell type has no trained decoder.
        ValueError
            If there is no regulator, there are not more genes than ``n_top``, or an argument is out of range.

        Examples
        --------
        The test asks of genes that could have been found, all but the regulator:

        >>> table = model.get_regulator_targets(adata.var_names[:2], "C2", n_top=10)
        >>> bound = {gene: adata.var_names[10:30] for gene in adata.var_names[:2]}
        >>> for regulator, rows in table[table["rank"] > 0].groupby("regulator"):
        ...     test = tv.tl.enrichment(rows.loc[rows["is_target"], "gene"], bound[regulator], rows["gene"])
        ...     print(regulator, test["n_genes"].tolist())
        G0001 [10]
        G0002 [10]
        """
        self._check_if_trained(warn=False)
        check_whole(n_steps=n_steps, n_top=n_top, batch_size=batch_size)
        check_whole(0, seed=seed)
        for key, value, positive in (
            ("step_size", step_size, True),
            ("penalty", penalty, False),
            ("start_range", start_range, False),
        ):
            if not (isinstance(value, Real) and np.isfinite(value) and (value > 0 if positive else value >= 0)):
                raise ValueError(
                    f"{key}={value!r} must be a {'positive number' if positive else 'number of at least 0'}."
                )
        decoder = self._decoder_of(cell_type, "cell_type")
        regulators = check_names(gene, "gene")
        if unknown := [name for name in regulators if name not in self.var_names_]:
            raise KeyError(
                f"The model does not have the genes {examples(unknown)}; it has, for example, {examples(self.var_names_)}."
            )
        n_genes = len(self.var_names_)
        if n_top >= n_genes:
            raise ValueError(f"n_top={n_top} must be below the number of genes, {n_genes}.")
        start = np.random.default_rng(seed).uniform(-start_range, start_range, n_genes).astype(np.float32)
        own = np.array([self.var_names_.index(name) for name in regulators])
        self.module.eval()
        network = self._network(decoder, use_skip)
        steps = {"n_steps": n_steps, "step_size": step_size, "penalty": penalty}
        inputs, outputs = [], []
        for batch in torch.from_numpy(own).to(self.module.device).split(batch_size):
            x = ascend(network, torch.from_numpy(start).to(self.module.device), batch, **steps)
            inputs.append(x.cpu().numpy())
            with torch.inference_mode():
                outputs.append(network(x).cpu().numpy())
        inputs, outputs = np.concatenate(inputs), np.concatenate(outputs)
        before = outputs.copy()
        before[np.arange(len(own)), own] = np.inf  # the regulator comes first, as rank 0
        order = np.argsort(-before, axis=1, kind="stable")
        rank = np.tile(np.arange(n_genes), len(own))
        return pd.DataFrame(
            {
                "regulator": np.repeat(np.array(regulators, dtype=object), n_genes),
                "gene": np.array(self.var_names_, dtype=object)[order].ravel(),
                "output": np.take_along_axis(outputs, order, axis=1).ravel(),
                "input": np.take_along_axis(inputs, order, axis=1).ravel(),
                "rank": rank,
                "is_target": (rank > 0) & (rank <= n_top),
            }
        )

    def get_latent_agreement(
        self,
        cell_type: str,
        other: str,
        adata: AnnData | None = None,
        *,
        of: Literal["latent", "input"] = "latent",
        batch_size: int = 512,
    ) -> pd.DataFrame:
        """How alike perturbations of one cell type are to those of another, in the latent space or as signatures.

        Where the latent space holds what a perturbation does in any cell type, the same perturbation in two cell types
        correlates best: the diagonal stands out. Drawn by :func:`transverse.pl.latent_agreement`.

        Parameters
        ----------
        cell_type, other
            Two cell types. They need no decoders.
        adata
            Signatures, by default those of the model, of which most were in the training. Missing genes are taken as 0, with
            a warning.
        of
            ``"latent"`` states of the signatures, or the signatures that go in (``"input"``), over the genes that are there.
            Of several signatures of one perturbation and cell type their mean.
        batch_size
            Signatures in a mini-batch; does not change the result.

        Returns
        -------
        Square DataFrame of Pearson correlations: perturbations in ``cell_type``, the name of its index, by the same
        perturbations in ``other``, the name of its columns; both sorted by name. These are the perturbations that both cell
        types have, with their type after a ``|`` if there are types. NaN where all values of a perturbation are the same.

        Raises
        ------
        RuntimeError
            If the model is not trained.
        KeyError
            If ``adata`` has no signatures of a cell type, or a column is not there.
        ValueError
            If the cell types are the same, or have fewer than two perturbations in common.

        Warns
        -----
        UserWarning
            If genes are missing.

        Examples
        --------
        >>> agreement = model.get_latent_agreement("C1", "C2")
        >>> agreement.shape
        (20, 20)
        """
        self._check_if_trained(warn=False)
        if of not in ("latent", "input"):
            raise ValueError(f"of={of!r} must be 'latent' or 'input'.")
        check_whole(batch_size=batch_size)
        sides = {"cell_type": str(cell_type), "other": str(other)}
        if sides["cell_type"] == sides["other"]:
            raise ValueError(f"cell_type and other must be two cell types, but both are {sides['other']!r}.")
        by, cell_type_key = self._keys
        signatures, _ = self._read(adata)
        found = signatures.obs[cell_type_key].to_numpy()
        for argument, name in sides.items():
            if name not in found:
                raise KeyError(
                    f"{argument}={name!r}: adata has no signatures of it. It has those of {examples(sorted(set(found)), 20)}."
                )
        names = signatures.obs[by].agg("|".join, axis=1).to_numpy()
        each = [set(names[found == name]) for name in sides.values()]
        common = sorted(set.intersection(*each))
        if len(common) < 2:
            raise ValueError(
                f"{cell_type} and {other} must have at least two perturbations in common, but have {len(common)} of "
                f"{len(each[0])} and {len(each[1])}, such as {examples(sorted(each[0]), 3)} and {examples(sorted(each[1]), 3)}."
            )
        self.module.eval()
        vectors = []
        for name in sides.values():
            own = signatures.where((found == name) & np.isin(names, common))
            codes = np.searchsorted(common, names[(found == name) & np.isin(names, common)])
            total, start = 0.0, 0
            for x in own.batches(batch_size):
                if of == "latent":
                    with torch.inference_mode():
                        x = self.module.inference(self._units(x))["z"].cpu().numpy()
                else:
                    x = x[:, signatures.genes >= 0]
                part = np.zeros((len(common), x.shape[1]))
                np.add.at(part, codes[start : (start := start + len(x))], x)
                total = total + part
            vectors.append(_standard(total / np.bincount(codes)[:, None]))
        return pd.DataFrame(
            np.clip(vectors[0] @ vectors[1].T, -1, 1),
            index=pd.Index(common, dtype=object, name=sides["cell_type"]),
            columns=pd.Index(common, dtype=object, name=sides["other"]),
        )


def _standard(x: np.ndarray) -> np.ndarray:
    """Rows of mean 0 and length 1, whose products are correlations; NaN for those that are constant."""
    constant = np.ptp(x, axis=1) == 0
    x = x - x.mean(axis=1, keepdims=True)
    length = np.linalg.norm(x, axis=1)
    return x / np.where(constant, np.nan, length)[:, None]
