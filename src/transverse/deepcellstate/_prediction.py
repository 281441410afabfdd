from __future__ import annotations

from collections.abc import Iterator, Sequence
from numbers import Real
from typing import Literal

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scvi.utils import track

from transverse._compat import registered_layer
from transverse._validation import examples

from ._input import Signatures, read_signatures

Scale = Literal["model", "data"]


class PredictionMixin:
    """Signatures in one cell type from those in others, and their latent states."""

    def predict(
        self,
        adata: AnnData,
        target: str,
        *,
        sources: str | Sequence[str] | None = None,
        aggregate: Literal["mean", "profile"] | None = "mean",
        use_skip: bool = True,
        scale: Scale | float = "model",
        allow_leak: bool = False,
        batch_size: int = 512,
    ) -> AnnData:
        r"""Predict the signatures of perturbations in a cell type from those in others.

        .. math::

            \hat x_{t,k} = \frac{1}{|C_k|} \sum_{c \in C_k} D_t(E(x_{c,k}))

        over the cell types :math:`C_k` in which ``adata`` has perturbation :math:`k`.

        Parameters
        ----------
        adata
            Signatures to predict from, of any perturbations and cell types, also of those that were not in the training.
            Genes that the model does not know are left out; those that are missing are taken as 0, with a warning.
        target
            Cell type to predict; it must have a decoder, see :meth:`add_cell_type`.
        sources
            Cell types to predict from, by default all that ``adata`` has.
        aggregate
            Several sources: ``"mean"`` of the predictions from each (paper), prediction from their mean ``"profile"``, or
            None for a prediction from each signature. Several signatures of one perturbation and source are averaged first,
            in the same way, so that all sources count alike.
        use_skip
            Whether the skip connection hands on the source's own value of a gene.
        scale
            What to divide the values by: that of the training data (``"model"``), the largest absolute value of ``adata``
            (``"data"``), for data of another kind, or a number.
        allow_leak
            Accept signatures of the target itself.
        batch_size
            Signatures in a mini-batch; does not change the result.

        Returns
        -------
        AnnData with a row for each perturbation in ``adata``, in sorted order, or for each signature with
        ``aggregate=None``:

        - ``X``: signature in the target, on the scale of the input, float32
        - ``layers["std"]``, with ``aggregate="mean"``: standard deviation over the predictions from single sources, NaN for
          one source
        - ``obs``: perturbation (and its type), the target as the cell type, ``n_sources``, and ``trained_on``: whether this
          perturbation's signature in the target was in the training. With ``aggregate=None`` the ``source`` as well
        - ``uns["prediction"]``: what was predicted, how, on which scale, and ``missing_genes``

        Raises
        ------
        RuntimeError
            If the model is not trained.
        KeyError
            If the target has no decoder, or a column or a source is not there.
        ValueError
            If ``adata`` has signatures of the target, no gene of the model, or missing or infinite values.

        Warns
        -----
        UserWarning
            If genes are missing.

        Examples
        --------
        >>> sources = adata[adata.obs["cell_type"] != "C2"]
        >>> pred = model.predict(sources, target="C2")
        >>> pred.obs.columns.tolist()
        ['perturbation', 'cell_type', 'n_sources', 'trained_on']
        >>> model.predict(sources, target="C2", aggregate=None).n_obs
        40
        """
        self._check_if_trained(warn=False)
        decoder = self._decoder_of(target)
        if aggregate not in ("mean", "profile", None):
            raise ValueError(f"aggregate={aggregate!r} must be 'mean', 'profile' or None.")
        _check_batch_size(batch_size)
        by, cell_type_key = self._keys
        signatures, missing = self._read(adata)
        found = signatures.obs[cell_type_key].to_numpy()
        if sources is not None:
            sources = [sources] if isinstance(sources, str) else [str(source) for source in sources]
            if unknown := sorted(set(sources) - set(found)):
                raise KeyError(
                    f"adata has no signatures of the sources {examples(unknown)}; it has {examples(sorted(set(found)))}."
                )
            signatures = signatures.where(np.isin(found, sources))
            found = signatures.obs[cell_type_key].to_numpy()
        if not allow_leak and (found == str(target)).any():
            raise ValueError(
                f"adata has {int((found == str(target)).sum())} signatures of target={target!r} itself: the prediction would be "
                "shown the answer. Leave them out, or pass allow_leak=True to reconstruct them."
            )
        divisor = self._divisor(signatures, scale)
        options = {"decoder": decoder, "divisor": divisor, "use_skip": use_skip, "batch_size": batch_size}
        obs, x, std = self._predicted(signatures, by, cell_type_key, aggregate, options)
        obs.insert(len(by), cell_type_key, str(target))
        trained = {tuple(condition) for condition in self.training_conditions_}
        obs["trained_on"] = [(*names, str(target)) in trained for names in obs[by].itertuples(index=False, name=None)]
        # text as objects, which every version of anndata can write
        text = [*by, cell_type_key, *(["source"] if "source" in obs else [])]
        obs[text] = obs[text].astype(object).astype("category")
        var = pd.DataFrame(index=pd.Index(self.var_names_, dtype=object))
        pred = AnnData(x, obs=obs, var=var, layers={} if std is None else {"std": std})
        pred.uns["prediction"] = {
            "method": type(self).__name__,
            "target": str(target),
            "aggregate": str(aggregate),
            "use_skip": use_skip,
            "scale": "that of the input",
            "divisor": divisor,
            "missing_genes": np.array(missing, dtype=object),
            "leak": "signatures of the target" if (found == str(target)).any() else "none",
        }
        return pred

    def _predicted(
        self, signatures: Signatures, by: list[str], cell_type_key: str, aggregate: str | None, options: dict
    ) -> tuple[pd.DataFrame, np.ndarray, np.ndarray | None]:
        """What the rows are of, the predictions, and their spread over sources."""
        obs = signatures.obs
        if aggregate is None:
            target = self.cell_types_[options["decoder"]]
            rows = obs[by].assign(n_sources=1, source=obs[cell_type_key])
            rows.index = pd.Index([f"{name}|{target}" for name in obs.index], dtype=object)
            return (
                rows,
                np.concatenate(list(self._decoded(signatures.batches(options["batch_size"]), len(obs), **options))),
                None,
            )
        pairs = obs.reset_index(drop=True).groupby([*by, cell_type_key], sort=True, observed=True).ngroup().to_numpy()
        # of pairs of perturbation and source, the mean over signatures
        of_pair = obs.reset_index(drop=True).groupby(pairs)[[*by, cell_type_key]].first()
        batches = signatures.batches(options["batch_size"])
        if aggregate == "mean":
            batches = self._decoded(batches, len(obs), **options)
        means = _group_means(batches, pairs, len(of_pair), len(self.var_names_))
        perturbations = of_pair.groupby(by, sort=True).ngroup().to_numpy()
        rows = of_pair.groupby(perturbations)[by].first()
        n = np.bincount(perturbations)
        x = _group_means([means], perturbations, len(rows), means.shape[1])
        std = None
        if aggregate == "mean":
            squares = _group_means([(means - x[perturbations]) ** 2], perturbations, len(rows), means.shape[1])
            with np.errstate(divide="ignore", invalid="ignore"):
                std = np.sqrt(squares * (n / np.where(n > 1, n - 1, np.nan))[:, None]).astype(np.float32)
        else:
            size = options["batch_size"]
            blocks = (x[start : start + size].astype(np.float32) for start in range(0, len(x), size))
            x = np.concatenate(list(self._decoded(blocks, len(x), **options)))
        rows["n_sources"] = n
        names = rows[by].agg("|".join, axis=1)
        rows.index = pd.Index([f"{name}|{self.cell_types_[options['decoder']]}" for name in names], dtype=object)
        return rows, x.astype(np.float32), std

    def get_latent_representation(self, adata: AnnData | None = None, batch_size: int = 512) -> np.ndarray:
        """Latent states of signatures, :math:`E(x)`.

        Parameters
        ----------
        adata
            Signatures, by default those of the model. Missing genes are taken as 0, with a warning.
        batch_size
            Signatures in a mini-batch; does not change the result.

        Returns
        -------
        Array of shape ``(n_signatures, n_latent)``, float32.

        Examples
        --------
        >>> model.get_latent_representation().shape
        (60, 128)
        """
        self._check_if_trained(warn=False)
        _check_batch_size(batch_size)
        signatures, _ = self._read(adata, keys=False)
        scale = float(self.module.scale)
        with torch.inference_mode():
            self.module.eval()
            blocks = signatures.batches(batch_size)
            latent = [self.module.inference(torch.from_numpy(x / scale))["z"].cpu().numpy() for x in blocks]
        return np.concatenate(latent)

    @property
    def _keys(self) -> tuple[list[str], str]:
        """Columns with the perturbation, and its type if there is one; and that with the cell type."""
        arguments = self.registry["setup_args"]
        by = [arguments["perturbation_key"]]
        if arguments["perturbation_type_key"] is not None:
            by.append(arguments["perturbation_type_key"])
        return by, arguments["cell_type_key"]

    def _read(self, adata: AnnData | None, keys: bool = True, name: str = "adata") -> tuple[Signatures, list[str]]:
        """Signatures of the user's, or by default of the model's data, and the genes that are missing in them."""
        if adata is None:
            if self.adata is None:
                raise ValueError(f"The model was loaded without data: pass {name}=.")
            adata = self.adata
        layer = registered_layer(self.adata_manager) if self.adata is not None else self.registry["setup_args"]["layer"]
        by, cell_type_key = self._keys
        return read_signatures(adata, self.var_names_, [*by, cell_type_key] if keys else [], layer, name)

    def _decoder_of(self, cell_type: str, argument: str = "target") -> int:
        if str(cell_type) not in self.cell_types_:
            raise KeyError(
                f"{argument}={cell_type!r} has no decoder. Cell types with one: {examples(self.trained_decoders_, 20)}. For "
                "another, call add_cell_type()."
            )
        if str(cell_type) not in self.trained_decoders_:
            raise KeyError(
                f"The decoder of {argument}={cell_type!r} was not trained: no perturbation of the training was measured there "
                f"and in another cell type. Trained: {examples(self.trained_decoders_, 20)}."
            )
        return self.cell_types_.index(str(cell_type))

    def _divisor(self, signatures: Signatures, scale: Scale | float) -> float:
        if scale == "model":
            return float(self.module.scale)
        value = signatures.largest() if scale == "data" else scale
        if not isinstance(value, Real) or not 0 < value < np.inf:
            raise ValueError(
                f"scale={scale!r} must be 'model', 'data' or a positive number; with 'data' not all values may be 0."
            )
        return float(value)

    @torch.inference_mode()
    def _decoded(
        self, blocks: Iterator[np.ndarray], n: int, *, decoder: int, divisor: float, use_skip: bool, batch_size: int
    ) -> Iterator[np.ndarray]:
        """Predictions from blocks of signatures, on the scale of these."""
        self.module.eval()
        for x in track(blocks, "Predicting", total=-(-n // batch_size), disable=n < 20_000):
            encoded = self.module.inference(torch.from_numpy(x / np.float32(divisor)))
            seen = encoded["x"] if use_skip else None
            yield self.module.generative(encoded["z"], seen, decoder)["x"].cpu().numpy() * np.float32(divisor)


def _group_means(blocks: Iterator[np.ndarray], groups: np.ndarray, n_groups: int, n_genes: int) -> np.ndarray:
    total = np.zeros((n_groups, n_genes))
    start = 0
    for block in blocks:
        np.add.at(total, groups[start : (start := start + len(block))], block)
    return total / np.bincount(groups, minlength=n_groups)[:, None]


def _check_batch_size(batch_size: int) -> None:
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size={batch_size!r} must be a whole number, at least 1.")
