from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from scvi.module import VAE
from scvi.module.base import LossOutput, auto_move_data
from torch.distributions import Normal, kl_divergence

from transverse._compat import MODULE_KEYS, REGISTRY_KEYS
from transverse.nn import (
    SplitSoftmax,
    candidate_log_likelihood,
    encoder_inputs,
    nb_log_likelihood,
    run_layers,
    zinb_log_likelihood,
)

from ._constants import SCSPECIES_KEYS
from ._decode import decoder_hidden


class ScSpeciesVAE(VAE):
    r"""A variational autoencoder of the target species whose inner encoder is the context model's.

    The encoder is :math:`f_{inner}^C \circ f_{outer}^T`: the first layers are the target's own and read its genes, the
    later layers and the heads for :math:`\mu` and :math:`\sigma` belong to the frozen context model. Target decoder,
    library encoder and dispersions are new.

    Parameters
    ----------
    n_input
        Number of target genes.
    context_kwargs
        Keyword arguments that rebuild the context's :class:`scvi.module.VAE`.
    n_context_cells
        Number of context cells whose representations are kept.
    n_outer_layers
        Encoder layers of the target's own; their output is the intermediate representation.
    frozen_eval
        Keep the frozen inner encoder in evaluation mode (no dropout) during training, as the original repository does;
        the published package leaves it in training mode.
    split_softmax
        Normalise the genes with and without an orthologue apart (:class:`~transverse.nn.SplitSoftmax`).
    is_shared
        Boolean array of shape ``(n_input,)``: genes with an orthologue in the context.
    alignment
        Align the ``"intermediate"`` representations (paper), or the ``"latent"`` variables themselves: the target then
        learns its whole encoder anew (reference code).
    align_average
        Average the alignment term over the ``"eligible"`` cells of a mini-batch (reference code) or over ``"all"``
        cells (equation 21).
    rescore_every
        Choose a cell's best candidate anew in every so many epochs, a different share of the cells in each, and keep its
        choice in between. 1 chooses in every step, as the paper does.
    candidate_latent
        Score candidates at a ``"sample"`` of their posterior (equation 19) or at its ``"mean"``.
    **kwargs
        Keyword arguments of :class:`scvi.module.VAE`.
    """

    def __init__(
        self,
        n_input: int,
        context_kwargs: dict[str, Any],
        n_context_cells: int,
        n_outer_layers: int = 1,
        frozen_eval: bool = True,
        split_softmax: bool = False,
        is_shared: np.ndarray | None = None,
        alignment: Literal["intermediate", "latent"] = "intermediate",
        align_average: Literal["eligible", "all"] = "eligible",
        candidate_latent: Literal["sample", "mean"] = "mean",
        rescore_every: int = 4,
        **kwargs,
    ):
        for name, value, known in (
            ("alignment", alignment, ("intermediate", "latent")),
            ("align_average", align_average, ("eligible", "all")),
            ("candidate_latent", candidate_latent, ("sample", "mean")),
        ):
            if value not in known:
                raise ValueError(f"{name} must be {known[0]!r} or {known[1]!r}, but got {value!r}.")
        super().__init__(n_input, **kwargs)
        self.n_outer_layers = n_outer_layers
        self.frozen_eval = frozen_eval
        self.alignment = alignment
        self.align_average = align_average
        self.candidate_latent = candidate_latent
        self.rescore_every = rescore_every
        # the last choice of every cell in this training; -1 before the first, None outside of training
        self.choices: torch.Tensor | None = None

        self.context = VAE(**context_kwargs).requires_grad_(False)
        if alignment == "intermediate":
            layers = self.z_encoder.encoder.fc_layers
            for name, inner in list(self.context.z_encoder.encoder.fc_layers.named_children())[n_outer_layers:]:
                setattr(layers, name, inner)
            self.z_encoder.mean_encoder = self.context.z_encoder.mean_encoder
            self.z_encoder.var_encoder = self.context.z_encoder.var_encoder
        if self.gene_likelihood == "nb":
            # scvi-tools computes dropout logits for every likelihood; a negative binomial has no use for them
            self.decoder.px_dropout_decoder = torch.nn.Identity()
        if split_softmax:
            self.decoder.px_scale_decoder[-1] = SplitSoftmax(torch.as_tensor(is_shared))

        n_hidden = self.context.n_hidden
        self.register_buffer("context_mean", torch.zeros(n_context_cells, self.n_latent))
        self.register_buffer("context_scale", torch.ones(n_context_cells, self.n_latent))
        self.register_buffer("context_intermediate", torch.zeros(n_context_cells, n_hidden))

    def set_context_cells(self, encoded: dict[str, torch.Tensor]) -> None:
        """Keep the representations of the context's cells."""
        self.context_mean.copy_(encoded["mean"])
        self.context_scale.copy_(encoded["scale"])
        self.context_intermediate.copy_(encoded["intermediate"])

    def train(self, mode: bool = True) -> ScSpeciesVAE:
        """Set the training mode; the frozen context stays in evaluation mode unless ``frozen_eval`` is off."""
        super().train(mode)
        if self.frozen_eval:
            self.context.eval()
        return self

    def encoder_inputs(self, vae: VAE, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        """Input of the encoder of ``vae`` (this module or the context): genes, continuous covariates, one-hot categories."""
        x = tensors[REGISTRY_KEYS.X_KEY]
        if vae.log_variational:
            x = torch.log1p(x)
        categories = ()
        if vae.encode_covariates:
            cont, cat = tensors.get(REGISTRY_KEYS.CONT_COVS_KEY), tensors.get(REGISTRY_KEYS.CAT_COVS_KEY)
            x = x if cont is None else torch.cat((x, cont), dim=-1)
            categories = () if cat is None else torch.split(cat, 1, dim=1)
            batch = tensors[REGISTRY_KEYS.BATCH_KEY]
            if vae.batch_representation == "embedding":
                x = torch.cat((x, vae.compute_embedding(REGISTRY_KEYS.BATCH_KEY, batch)), dim=-1)
            else:
                categories = (batch, *categories)
        return encoder_inputs(vae.z_encoder.encoder, x, *categories)

    def encode_hidden(
        self, vae: VAE, tensors: dict[str, torch.Tensor], stop: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Output of the outer layers and of layer ``stop`` of the encoder of ``vae`` (this module or the context)."""
        layers = vae.z_encoder.encoder
        outer = run_layers(layers, self.encoder_inputs(vae, tensors), stop=self.n_outer_layers)
        return outer, run_layers(layers, outer, start=self.n_outer_layers, stop=stop)

    @auto_move_data
    def encode(self, vae: VAE, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Intermediate representation, and mean and standard deviation of the latent posterior, under ``vae``."""
        outer, hidden = self.encode_hidden(vae, tensors)
        encoder = vae.z_encoder
        variance = encoder.var_activation(encoder.var_encoder(hidden)) + encoder.var_eps
        return {"intermediate": outer, "mean": encoder.mean_encoder(hidden), "scale": variance.sqrt()}

    def _regular_inference(self, x, batch_index, cont_covs=None, cat_covs=None, n_samples=1):
        tensors = {
            REGISTRY_KEYS.X_KEY: x,
            REGISTRY_KEYS.BATCH_KEY: batch_index,
            REGISTRY_KEYS.CONT_COVS_KEY: cont_covs,
            REGISTRY_KEYS.CAT_COVS_KEY: cat_covs,
        }
        encoded = self.encode(self, tensors)
        qz = Normal(encoded["mean"], encoded["scale"], validate_args=False)
        z = qz.rsample() if n_samples == 1 else qz.sample((n_samples,))
        library, ql = self._library(x, batch_index, cont_covs, cat_covs, n_samples)
        return {
            MODULE_KEYS.Z_KEY: z,
            MODULE_KEYS.QZ_KEY: qz,
            MODULE_KEYS.QL_KEY: ql,
            MODULE_KEYS.LIBRARY_KEY: library,
            SCSPECIES_KEYS.INTERMEDIATE_KEY: encoded["intermediate"],
        }

    @auto_move_data
    def library(self, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        """Log library size of shape ``(n_cells, 1)``: the observed total, or the mean of its posterior."""
        covariates = (tensors.get(key) for key in (REGISTRY_KEYS.CONT_COVS_KEY, REGISTRY_KEYS.CAT_COVS_KEY))
        library, ql = self._library(tensors[REGISTRY_KEYS.X_KEY], tensors[REGISTRY_KEYS.BATCH_KEY], *covariates)
        return library if ql is None else ql.mean

    def _library(self, x, batch_index, cont_covs, cat_covs, n_samples=1):
        """Log library size of shape ``(n_cells, 1)`` and its posterior (None where the total is taken as it is)."""
        if self.use_observed_lib_size:
            library = torch.log(x.sum(1, keepdim=True))
            return (library if n_samples == 1 else library.expand(n_samples, -1, -1)), None
        inputs = torch.log1p(x) if self.log_variational else x
        categories = ()
        if self.encode_covariates:
            inputs = inputs if cont_covs is None else torch.cat((inputs, cont_covs), dim=-1)
            categories = (batch_index, *(() if cat_covs is None else torch.split(cat_covs, 1, dim=1)))
        ql, library = self.l_encoder(inputs, *categories)
        return (library if n_samples == 1 else ql.sample((n_samples,))), ql

    def loss(
        self,
        tensors: dict[str, torch.Tensor],
        inference_outputs: dict[str, Any],
        generative_outputs: dict[str, Any],
        kl_weight: float = 1.0,
        alignment_weight: float = 0.0,
        epoch: int = 0,
    ) -> LossOutput:
        r"""Negative evidence lower bound plus the alignment term (equation 21).

        .. math::
            L = \frac1B \sum_j \left[ -\log p(x_j \mid z_j, \ell_j, s_j) + \beta\,\mathrm{KL}_z + \mathrm{KL}_\ell \right]
            + \eta \frac{1}{|J|} \sum_{j \in J} \lVert t_j - t_C^{(i^*_j)} \rVert^2
        """
        x = tensors[REGISTRY_KEYS.X_KEY]
        kl_z = kl_divergence(inference_outputs[MODULE_KEYS.QZ_KEY], generative_outputs[MODULE_KEYS.PZ_KEY]).sum(-1)
        kl_l = torch.zeros_like(kl_z)
        if not self.use_observed_lib_size:
            kl_l = kl_divergence(inference_outputs[MODULE_KEYS.QL_KEY], generative_outputs[MODULE_KEYS.PL_KEY]).sum(1)
        reconstruction = -self.log_likelihood(x, generative_outputs[MODULE_KEYS.PX_KEY])
        loss = torch.mean(reconstruction + kl_weight * kl_z + kl_l)
        alignment = self._alignment(tensors, inference_outputs, epoch)
        if alignment_weight:
            loss = loss + alignment_weight * alignment
        return LossOutput(
            loss=loss,
            reconstruction_loss=reconstruction,
            kl_local={MODULE_KEYS.KL_L_KEY: kl_l, MODULE_KEYS.KL_Z_KEY: kl_z},
            extra_metrics={SCSPECIES_KEYS.ALIGNMENT_KEY: alignment.detach()},
        )

    def log_likelihood(self, x: torch.Tensor, px: torch.distributions.Distribution) -> torch.Tensor:
        """Log-likelihood of counts of shape ``(n_cells, n_genes)``, summed over genes."""
        if self.gene_likelihood == "nb":
            return nb_log_likelihood(x, px.mu, px.theta)
        if self.gene_likelihood == "zinb":
            return zinb_log_likelihood(x, px.mu, px.theta, px.zi_logits)
        return px.log_prob(x).sum(-1)

    @torch.compiler.disable  # a loop over cells, of another number in every mini-batch
    def _alignment(self, tensors, inference_outputs, epoch: int = 0) -> torch.Tensor:
        intermediate = inference_outputs[SCSPECIES_KEYS.INTERMEDIATE_KEY]
        if SCSPECIES_KEYS.CANDIDATES_KEY not in tensors:
            return intermediate.new_zeros(())
        rows = tensors[SCSPECIES_KEYS.ELIGIBLE_KEY].squeeze(-1).nonzero().squeeze(-1)
        if len(rows) == 0:
            return intermediate.new_zeros(())
        best = self._choose(tensors, inference_outputs[MODULE_KEYS.LIBRARY_KEY].detach(), rows, epoch)
        if self.alignment == "intermediate":
            difference = intermediate[rows] - self.context_intermediate[best]
        else:
            context = self.context_mean[best]
            if self.candidate_latent == "sample":
                context = context + self.context_scale[best] * torch.randn_like(context)
            difference = inference_outputs[MODULE_KEYS.Z_KEY][rows] - context
        distance = difference.square().sum(-1)
        return distance.mean() if self.align_average == "eligible" else distance.sum() / len(intermediate)

    def _choose(self, tensors, library: torch.Tensor, rows: torch.Tensor, epoch: int) -> torch.Tensor:
        """Best candidates of some rows of a mini-batch; those of cells whose turn it is not are remembered."""

        def choose(rows):
            return self.best_candidates({k: v[rows] for k, v in tensors.items() if v is not None}, library[rows])

        if self.choices is None or not self.training or self.rescore_every <= 1:
            return choose(rows)
        cells = tensors[SCSPECIES_KEYS.CELL_KEY].long()
        self.choices = self.choices.to(cells.device)
        due = (self.choices[cells[rows]] < 0) | ((cells[rows] + epoch) % self.rescore_every == 0)
        if due.any():
            self.choices[cells[rows[due]]] = choose(rows[due])
        return self.choices[cells[rows]]

    @torch.no_grad()
    def best_candidates(self, tensors: dict[str, torch.Tensor], library: torch.Tensor) -> torch.Tensor:
        """Context cell, of each cell's candidates, under which the cell is most likely (equation 20)."""
        candidates = tensors[SCSPECIES_KEYS.CANDIDATES_KEY].long()
        if candidates.shape[1] == 1:
            return candidates[:, 0]
        sample = self.training and self.candidate_latent == "sample"
        scores = self.candidate_scores(tensors, library, candidates, sample=sample)
        return torch.gather(candidates, 1, scores.argmax(1, keepdim=True)).squeeze(1)

    @torch.no_grad()
    def candidate_scores(
        self, tensors: dict[str, torch.Tensor], library: torch.Tensor, candidates: torch.Tensor, sample: bool = False
    ) -> torch.Tensor:
        """Log-likelihood of cells under their candidates' latent variables, up to a constant per cell.

        A context cell is decoded once for every distinct set of covariates in the mini-batch, or in a part of it if there are
        too many to be held.

        Parameters
        ----------
        tensors
            Mini-batch with counts and covariates.
        library
            Log library sizes of shape ``(n_cells, 1)``.
        candidates
            Context cells of shape ``(n_cells, n_candidates)``.
        sample
            Draw the latent variables from the context posterior instead of taking its mean.

        Returns
        -------
        Tensor of shape ``(n_cells, n_candidates)``, in nats.
        """
        x = tensors[REGISTRY_KEYS.X_KEY]
        covariates = [
            tensors[key].to(torch.float32)
            for key in (REGISTRY_KEYS.BATCH_KEY, REGISTRY_KEYS.CAT_COVS_KEY, REGISTRY_KEYS.CONT_COVS_KEY)
            if tensors.get(key) is not None
        ]
        conditions, of_cell = torch.unique(torch.cat(covariates, dim=1), dim=0, return_inverse=True)
        pairs = candidates * len(conditions) + of_cell.unsqueeze(1)
        profiles, index = torch.unique(pairs, return_inverse=True)
        if len(profiles) * x.shape[1] > _DECODED and pairs.numel() > 1:
            if len(x) == 1:
                parts = candidates.tensor_split(2, dim=1)
                return torch.cat([self.candidate_scores(tensors, library, part, sample) for part in parts], dim=1)
            halves = torch.arange(len(x), device=x.device).tensor_split(2)
            parts = [({k: v[rows] for k, v in tensors.items() if v is not None}, rows) for rows in halves]
            return torch.cat(
                [self.candidate_scores(part, library[rows], candidates[rows], sample) for part, rows in parts]
            )
        context_cells = torch.div(profiles, len(conditions), rounding_mode="floor")
        z = self.context_mean[context_cells]
        if sample:
            z = z + self.context_scale[context_cells] * torch.randn_like(z)
        # a cell of each condition lends its covariates to the decoded profiles
        first = torch.zeros(len(conditions), dtype=torch.long, device=x.device)
        first[of_cell] = torch.arange(len(of_cell), device=x.device)
        donors = first[profiles % len(conditions)]
        donor_tensors = {k: tensors[k][donors] for k in _COVARIATE_KEYS if tensors.get(k) is not None}
        return self.profile_scores(tensors, library, z, donor_tensors, index)

    @torch.no_grad()
    def profile_scores(
        self,
        tensors: dict[str, torch.Tensor],
        library: torch.Tensor,
        z: torch.Tensor,
        covariates: dict[str, torch.Tensor],
        index: torch.Tensor,
    ) -> torch.Tensor:
        """Log-likelihood of cells under latent variables decoded with given covariates, up to a constant per cell.

        Row ``j`` of ``index`` (``(n_cells, n_candidates)``) names the rows of ``z`` that cell ``j`` is scored under.
        """
        x = tensors[REGISTRY_KEYS.X_KEY]
        hidden = decoder_hidden(self, z, covariates)
        scale = self.decoder.px_scale_decoder(hidden)
        zi_logits = self.decoder.px_dropout_decoder(hidden) if self.gene_likelihood == "zinb" else None
        if self.dispersion == "gene-cell":
            theta = torch.exp(self.decoder.px_r_decoder(hidden))
            return self._full_scores(x, library.exp(), scale, theta, index, zi_logits)
        theta = self._theta(covariates[REGISTRY_KEYS.BATCH_KEY])
        return candidate_log_likelihood(x, library.exp(), scale, theta, index, zi_logits)

    def _theta(self, batch_index: torch.Tensor) -> torch.Tensor:
        """Inverse dispersions of shape ``(n_genes,)`` or, by batch, ``(len(batch_index), n_genes)``."""
        if self.dispersion == "gene-batch":
            # the exponential of the table, not of its copies
            return torch.exp(self.px_r).T[batch_index.squeeze(-1).long()]
        return torch.exp(self.px_r)

    def _full_scores(self, x, library, scale, theta, index, zi_logits):
        scores = torch.empty(index.shape, dtype=x.dtype, device=x.device)
        for j in range(index.shape[1]):
            mu, theta_j = library * scale[index[:, j]], theta[index[:, j]]
            if zi_logits is None:
                scores[:, j] = nb_log_likelihood(x, mu, theta_j)
            else:
                scores[:, j] = zinb_log_likelihood(x, mu, theta_j, zi_logits[index[:, j]])
        return scores


# Values of decoded profiles that are held at a time: a few tables of 128 MiB.
_DECODED = 2**25
_COVARIATE_KEYS = (REGISTRY_KEYS.BATCH_KEY, REGISTRY_KEYS.CAT_COVS_KEY, REGISTRY_KEYS.CONT_COVS_KEY)
