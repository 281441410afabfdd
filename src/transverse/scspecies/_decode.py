"""Expression of either species at given latent variables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scvi.module import VAE
from torch import nn

from transverse._compat import REGISTRY_KEYS

CHUNK = 512


class GeneDecoder:
    r"""Proportions of some genes of one species, averaged over its batches (equation 23).

    The softmax runs over the asked genes alone (equation 25, without the factor :math:`H/N` of equation 26), so that
    neither a gene that the other species lacks nor the number of genes moves the proportions of those that both have.

    Parameters
    ----------
    vae
        Module of the species.
    genes
        Positions of the genes to decode; by default all.
    groups
        Group of every gene of ``genes``, from 0: proportions are summed within groups (many-to-many orthologues).
    batches
        Codes of the batches to average over; by default all.
    """

    def __init__(
        self,
        vae: VAE,
        genes: np.ndarray | None = None,
        groups: np.ndarray | None = None,
        batches: Sequence[int] | None = None,
    ):
        self.vae = vae
        self.batches = range(vae.n_batch) if batches is None else list(batches)
        head = vae.decoder.px_scale_decoder
        linear = head[0]
        index = slice(None) if genes is None else torch.as_tensor(genes, device=linear.weight.device)
        self.weight, self.bias = linear.weight.detach()[index], linear.bias.detach()[index]
        # over all genes the module's own normalisation holds, which may treat shared genes apart
        self.normalize = nn.Softmax(dim=-1) if genes is not None and not isinstance(head[1], nn.Softplus) else head[1]
        self.renormalize = genes is not None and isinstance(head[1], nn.Softplus)
        self.groups = None if groups is None else torch.tensor(groups, device=linear.weight.device)

    @torch.inference_mode()
    def __call__(self, z: np.ndarray, covariates: dict[str, np.ndarray] | None = None) -> torch.Tensor:
        """Proportions at latent variables of shape ``(n, n_latent)``, on the CPU; rows sum to one.

        Parameters
        ----------
        z
            Latent variables.
        covariates
            Values of the extra covariates of every row, by registry key.
        """
        parts = [
            self._decode(z[start : start + CHUNK], {k: v[start : start + CHUNK] for k, v in (covariates or {}).items()})
            for start in range(0, len(z), CHUNK)
        ]
        return torch.cat(parts)

    def _decode(self, z, covariates: dict[str, Any]) -> torch.Tensor:
        device = self.weight.device
        z = torch.as_tensor(z, dtype=self.weight.dtype, device=device)
        covariates = {key: torch.as_tensor(value, device=device) for key, value in covariates.items()}
        total = z.new_zeros((len(z), len(self.weight)))
        for batch in self.batches:
            codes = torch.full((len(z), 1), batch, dtype=torch.long, device=device)
            hidden = decoder_hidden(self.vae, z, {**covariates, REGISTRY_KEYS.BATCH_KEY: codes})
            scale = self.normalize(nn.functional.linear(hidden, self.weight, self.bias))
            total += scale / scale.sum(1, keepdim=True) if self.renormalize else scale
        total /= len(self.batches)
        if self.groups is not None:
            summed = total.new_zeros((len(total), int(self.groups.max()) + 1))
            total = summed.index_add_(1, self.groups, total)
        return total.cpu()


def decoder_hidden(vae: VAE, z: torch.Tensor, covariates: dict[str, torch.Tensor]) -> torch.Tensor:
    """Last hidden layer of a decoder, of shape ``(n, n_hidden)``; covariates by registry key."""
    cont, cat = covariates.get(REGISTRY_KEYS.CONT_COVS_KEY), covariates.get(REGISTRY_KEYS.CAT_COVS_KEY)
    batch = covariates[REGISTRY_KEYS.BATCH_KEY]
    z = z if cont is None else torch.cat((z, cont.to(z.dtype)), dim=-1)
    categories = () if cat is None else torch.split(cat, 1, dim=1)
    if vae.batch_representation == "embedding":
        z = torch.cat((z, vae.compute_embedding(REGISTRY_KEYS.BATCH_KEY, batch)), dim=-1)
        return vae.decoder.px_decoder(z, *categories)
    return vae.decoder.px_decoder(z, batch, *categories)
