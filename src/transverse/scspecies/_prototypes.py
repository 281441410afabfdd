from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from lightning.pytorch.callbacks import Callback
from scvi.module import VAE
from torch.nn.functional import linear

from transverse._compat import REGISTRY_KEYS
from transverse.nn import nb_log_likelihood, run_layers, zinb_log_likelihood

from ._context import context_loader


class PrototypeTracker(Callback):
    r"""Follows, during training, which context types explain the target's types best (figure 10 of the paper).

    The prototype of a type is the gene-wise median of its cells' counts. After every step of the optimiser, the target's
    decoder scores each target prototype at the latent mean of every context prototype.

    Parameters
    ----------
    model
        A :class:`~transverse.ScSpecies` model, trained or not.
    context_adata
        The context's data.
    groupby
        Column of the target's ``.obs``; by default the data-level labels. Used for this display only.
    labels_key
        Which of the context's label columns; by default the first.
    every_n_steps
        Record in every so many steps.
    n_cells
        Most cells of a type that make its prototype.

    Examples
    --------
    With ``context``, ``mouse`` and ``human`` of the example of :class:`~transverse.ScSpecies`:

    >>> model = tv.ScSpecies.from_scvi_model(context, human, human.uns["orthologs"], labels_key="cell_type")
    >>> tracker = tv.scspecies.PrototypeTracker(model, mouse)
    >>> model.train(max_epochs=2, callbacks=[tracker])
    >>> axes = tv.pl.prototype_curves(tracker.table)
    """

    def __init__(
        self,
        model,
        context_adata: AnnData,
        groupby: str | None = None,
        *,
        labels_key: str | None = None,
        every_n_steps: int = 1,
        n_cells: int = 2000,
    ):
        super().__init__()
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps must be at least 1, but got {every_n_steps}.")
        self.every_n_steps = every_n_steps
        module = model.module
        if groupby is None:
            groups = model.get_data_level_labels(labels_key)["label"].cat.remove_unused_categories()
        else:
            groups = model._target_groups(model.adata, groupby)
        context_groups = model._context_groups(labels_key, None)
        rng = np.random.default_rng(0)
        self.target_types = [str(category) for category in groups.cat.categories]
        self.context_types = [str(category) for category in context_groups.cat.categories]

        def prototypes(vae, groups, loader):
            found = []
            for category in groups.cat.categories:
                index = np.sort(rng.permutation(np.flatnonzero(groups == category))[:n_cells])
                found.append(_prototype(module, vae, loader(index)))
            return {key: torch.stack([part[key] for part in found]) for key in found[0]}

        mode = module.training
        module.eval()
        context = prototypes(
            module.context, context_groups, lambda index: context_loader(context_adata, model.context_, index)
        )
        with torch.no_grad():
            encoder = module.context.z_encoder
            inputs = context["inputs"].to(module.device)
            self._latent = encoder.mean_encoder(run_layers(encoder.encoder, inputs)).cpu()
        self._target = prototypes(module, groups, lambda index: model._make_data_loader(model.adata, index))
        module.train(mode)
        self._steps: list[tuple[int, np.ndarray]] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        """Score the prototypes."""
        if trainer.global_step % self.every_n_steps == 0:
            self._steps.append((trainer.global_step, prototype_scores(pl_module.module, self._target, self._latent)))

    @property
    def table(self) -> pd.DataFrame:
        """One row per step, target type and context type, with the ``negative_log_likelihood`` in nats.

        Examples
        --------
        >>> tracker.table.columns.tolist()
        ['step', 'target_type', 'context_type', 'negative_log_likelihood']
        """
        n = len(self.target_types) * len(self.context_types)
        return pd.DataFrame(
            {
                "step": np.repeat([step for step, _ in self._steps], n),
                "target_type": np.tile(np.repeat(self.target_types, len(self.context_types)), len(self._steps)),
                "context_type": np.tile(self.context_types, len(self._steps) * len(self.target_types)),
                "negative_log_likelihood": np.concatenate([s.ravel() for _, s in self._steps] or [np.empty(0)]),
            }
        )


def _prototype(module, vae: VAE, loader: Iterable[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Median counts, encoder inputs at these counts and average covariates, and average covariates of the decoder."""
    counts, covariates, batches, extra = [], [], [], []
    for tensors in loader:
        counts.append(tensors[REGISTRY_KEYS.X_KEY])
        covariates.append(
            module.encoder_inputs(vae, {k: v.to(module.device) for k, v in tensors.items()})[:, vae.n_input :]
        )
        batches.append(tensors[REGISTRY_KEYS.BATCH_KEY].long())
        if tensors.get(REGISTRY_KEYS.CONT_COVS_KEY) is not None:
            extra.append(tensors[REGISTRY_KEYS.CONT_COVS_KEY])
    x = torch.from_numpy(np.median(torch.cat(counts).numpy(), axis=0).astype(np.float32))
    genes = torch.log1p(x) if vae.log_variational else x
    one_hot = torch.nn.functional.one_hot(torch.cat(batches).squeeze(1), vae.n_batch).float()
    prototype = {
        "counts": x,
        "inputs": torch.cat([genes, torch.cat(covariates).mean(0).cpu()]),
        "batch": one_hot.mean(0),
    }
    if extra:
        prototype["continuous"] = torch.cat(extra).mean(0)
    return prototype


@torch.no_grad()
def prototype_scores(module, target: dict[str, torch.Tensor], latent: torch.Tensor) -> np.ndarray:
    """Negative log-likelihood of target prototypes at latent variables, of shape ``(n_target, n_latent_variables)``."""
    mode = module.training
    module.eval()
    device = module.device
    x, batch = target["counts"].to(device), target["batch"].to(device)
    z = latent.to(device)
    if module.use_observed_lib_size:
        library = x.sum(1, keepdim=True).clamp(min=1)
    else:
        library = module.l_encoder.mean_encoder(run_layers(module.l_encoder.encoder, target["inputs"].to(device))).exp()
    scores = np.empty((len(x), len(z)))
    decoder = module.decoder
    for i in range(len(x)):
        z_i = z
        if "continuous" in target:
            z_i = torch.cat((z, target["continuous"][i].to(device).expand(len(z), -1)), dim=-1)
        # a weighted one-hot batch; extra categories at their first value
        others = [z.new_zeros((len(z), 1)) for _ in decoder.px_decoder.n_cat_list[1:]]
        hidden = decoder.px_decoder(z_i, _weights(batch[i], len(z)), *others)
        mean = library[i] * decoder.px_scale_decoder(hidden)
        if module.dispersion == "gene-batch":
            theta = torch.exp(linear(batch[i : i + 1], module.px_r)).expand_as(mean)
        elif module.dispersion == "gene-cell":
            theta = torch.exp(decoder.px_r_decoder(hidden))
        else:
            theta = torch.exp(module.px_r).expand_as(mean)
        counts = x[i].expand_as(mean)
        if module.gene_likelihood == "nb":
            scores[i] = -nb_log_likelihood(counts, mean, theta).cpu().numpy()
        else:
            scores[i] = -zinb_log_likelihood(counts, mean, theta, decoder.px_dropout_decoder(hidden)).cpu().numpy()
    module.train(mode)
    return scores


def _weights(batch: torch.Tensor, n: int) -> torch.Tensor:
    """Batch weights for every row; a single batch is given as its code, which is how scvi-tools tells the two apart."""
    return batch.new_zeros((n, 1)) if len(batch) == 1 else batch.expand(n, -1)
