from __future__ import annotations

from collections.abc import Sequence

import torch
from scvi.module.base import BaseModuleClass, LossOutput, auto_move_data
from torch.nn import functional as F

from transverse._compat import REGISTRY_KEYS

from ._constants import COMBINATION, SAME_PERTURBATION, XTRANSFERCDR_KEYS
from ._losses import masked_mse, orthogonality, similarity
from ._networks import Activation, Architecture, make_decoder, make_encoder


class XTransferCDRModule(BaseModuleClass):
    r"""Basal encoder :math:`E_S`, perturbation encoder :math:`E_P` and one decoder :math:`D`.

    A mini-batch holds pairs of profiles with a matched control each. The left and right partner have the same context
    and two perturbations, or the same perturbation and two contexts; where both are single perturbations of one context,
    a cell with both may come along.

    Parameters
    ----------
    n_genes
        Genes.
    n_hidden
        Widths of the hidden layers, from the genes to the latent space (reference: ``(1024, 512, 256)``).
    n_latent
        Width of both latent spaces (reference and paper: 128).
    n_residual_blocks
        Residual blocks after the second hidden layer of the encoders, mirrored in the decoder (reference: 3).
    architecture
        ``"residual"``, as the reference is built, or ``"plain"``, as the paper describes it: no blocks, and batch
        normalisation and dropout on the latent layer too.
    dropout_rate
        Of all hidden layers (paper: 0.2).
    input_noise, latent_noise
        Standard deviation of the Gaussian noise that is added in training to what is encoded and to what is decoded
        (reference: 0.1 both; not in the paper). The orthogonality and the similarity see no latent noise.
    output_activation
        Last activation of the decoder: ``"relu"`` (reference), ``"softplus"``, or ``"linear"`` for data with negative
        values.
    reconstruction_weight, cross_weight, basal_weight, similarity_weight, orthogonality_weight, combination_weight
        Weights of the terms of :meth:`loss` (reference: 1, and 0.5 for the orthogonality; none published for the
        combination). 0 switches a term off.
    symmetric_similarity
        Divergence in both directions (ours) instead of the reference's one.

    Examples
    --------
    >>> import torch
    >>> import transverse as tv
    >>> module = tv.xtransfercdr.XTransferCDRModule(n_genes=50, n_hidden=(16,), n_latent=4, n_residual_blocks=0)
    >>> x = torch.rand(6, 50)
    """

    def __init__(
        self,
        n_genes: int,
        n_hidden: Sequence[int] = (1024, 512, 256),
        n_latent: int = 128,
        n_residual_blocks: int = 3,
        architecture: Architecture = "residual",
        dropout_rate: float = 0.2,
        input_noise: float = 0.1,
        latent_noise: float = 0.1,
        output_activation: Activation = "relu",
        reconstruction_weight: float = 1.0,
        cross_weight: float = 1.0,
        basal_weight: float = 1.0,
        similarity_weight: float = 1.0,
        orthogonality_weight: float = 0.5,
        combination_weight: float = 1.0,
        symmetric_similarity: bool = False,
    ):
        super().__init__()
        shape = (n_hidden, n_latent, n_residual_blocks, dropout_rate, architecture)
        self.basal_encoder = make_encoder(n_genes, *shape)
        self.perturbation_encoder = make_encoder(n_genes, *shape)
        self.decoder = make_decoder(
            n_latent, n_hidden, n_genes, n_residual_blocks, dropout_rate, architecture, output_activation
        )
        self.n_latent = n_latent
        self.input_noise, self.latent_noise = input_noise, latent_noise
        self.weights = {
            "reconstruction": reconstruction_weight,
            "cross": cross_weight,
            "basal": basal_weight,
            "similarity": similarity_weight,
            "orthogonality": orthogonality_weight,
            "combination": combination_weight,
        }
        if min(self.weights.values()) < 0 or not any(self.weights.values()):
            raise ValueError(f"The weights of the loss must not be negative, nor all 0, but got {self.weights}.")
        self.symmetric_similarity = symmetric_similarity

    def _get_inference_input(self, tensors: dict[str, torch.Tensor], **kwargs) -> dict[str, torch.Tensor]:
        n_pairs = len(tensors[XTRANSFERCDR_KEYS.KIND_KEY])
        return {"x": tensors[REGISTRY_KEYS.X_KEY][: 2 * n_pairs]}

    @auto_move_data
    def inference(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        r"""Encode profiles.

        Parameters
        ----------
        x
            Log-normalised expression, shape ``(n_cells, n_genes)``.

        Returns
        -------
        ``basal`` :math:`S` and ``effect`` :math:`P`, and both with the latent noise of training as ``noisy_basal`` and
        ``noisy_effect`` (the same draw for all that is decoded), shape ``(n_cells, n_latent)``.

        Examples
        --------
        >>> outputs = module.inference(x)
        >>> tuple(outputs["basal"].shape), tuple(outputs["effect"].shape)
        ((6, 4), (6, 4))
        """
        x = self._noisy(x, self.input_noise)
        basal, effect = self.basal_encoder(x), self.perturbation_encoder(x)
        return {
            "basal": basal,
            "effect": effect,
            "noisy_basal": self._noisy(basal, self.latent_noise),
            "noisy_effect": self._noisy(effect, self.latent_noise),
        }

    def _noisy(self, x: torch.Tensor, scale: float) -> torch.Tensor:
        return x + scale * torch.randn_like(x) if self.training and scale > 0 else x

    def _get_generative_input(
        self, tensors: dict[str, torch.Tensor], inference_outputs: dict[str, torch.Tensor], **kwargs
    ) -> dict[str, torch.Tensor]:
        kind = tensors[XTRANSFERCDR_KEYS.KIND_KEY].flatten()
        n_pairs = len(kind)
        basal, effect = inference_outputs["noisy_basal"], inference_outputs["noisy_effect"]
        other_basal, other_effect = basal.roll(n_pairs, 0), effect.roll(n_pairs, 0)
        swap_effect = (kind == SAME_PERTURBATION).repeat(2)[:, None]
        cross = torch.where(swap_effect, basal + other_effect, other_basal + effect)
        double = (kind == COMBINATION).nonzero().flatten()
        combination = basal[double] + effect[double] + effect[double + n_pairs]
        # one pass for all: batch normalisation sees every kind of input together
        return {"z": torch.cat([basal, basal + effect, cross, combination])}

    @auto_move_data
    def generative(self, z: torch.Tensor) -> dict[str, torch.Tensor]:
        """Decode sums of basal states and effects, ``(n_cells, n_latent)``, to expression ``(n_cells, n_genes)``.

        Examples
        --------
        >>> outputs = module.inference(x)
        >>> tuple(module.generative(outputs["basal"] + outputs["effect"])["x"].shape)
        (6, 50)
        """
        return {"x": self.decoder(z)}

    def loss(
        self,
        tensors: dict[str, torch.Tensor],
        inference_outputs: dict[str, torch.Tensor],
        generative_outputs: dict[str, torch.Tensor],
    ) -> LossOutput:
        r"""Weighted sum of the terms, each a mean over pairs and genes.

        With left :math:`a`, right :math:`b` and their controls :math:`c`, of one context:

        .. math::

            L_\mathrm{rec} &= \mathrm{MSE}(D(S^a + P^a), x^a) + \mathrm{MSE}(D(S^b + P^b), x^b) \\
            L_\mathrm{cross} &= \mathrm{MSE}(D(S^b + P^a), x^a) + \mathrm{MSE}(D(S^a + P^b), x^b) \\
            L_\mathrm{base} &= \mathrm{MSE}(D(S^a), c^a) + \mathrm{MSE}(D(S^b), c^b) \\
            L_\mathrm{sim} &= \mathrm{KL}(\mathrm{softmax}(S^b) \,\|\, \mathrm{softmax}(S^a)) \\
            L_\mathrm{orth} &= \langle S^a, P^a \rangle^2 + \langle S^b, P^b \rangle^2 \\
            L_\mathrm{comb} &= \mathrm{MSE}(D(S^a + P^a + P^b), x^{ab})

        For pairs of one perturbation in two contexts, the effects :math:`P` are swapped instead of the basal states, and
        the similarity is that of the effects.

        Examples
        --------
        Of three pairs that have the context in common, with their controls:

        >>> batch = {"X": torch.rand(12, 50), "pair_kind": torch.zeros(3, 1), "has_control": torch.ones(6, 1)}
        >>> _, _, output = module(batch)
        >>> sorted(output.extra_metrics)[:4]
        ['basal', 'basal_norm', 'combination', 'cross']
        """
        x = tensors[REGISTRY_KEYS.X_KEY]
        kind = tensors[XTRANSFERCDR_KEYS.KIND_KEY].flatten()
        has_control = tensors[XTRANSFERCDR_KEYS.HAS_CONTROL_KEY].flatten().bool()
        n = 2 * len(kind)
        cells, controls, doubles = x[:n], x[n : 2 * n], x[2 * n :]
        # one split: the gradient of a slice would be as large as the whole
        of_basal, of_sum, of_swap, of_double = generative_outputs["x"].split([n, n, n, len(doubles)])
        basal, effect = inference_outputs["basal"], inference_outputs["effect"]
        shared = torch.where((kind == SAME_PERTURBATION).repeat(2)[:, None], effect, basal)
        cross = F.mse_loss(of_swap, cells)
        # both sides at once: twice the mean is the sum of the two means
        terms = {
            "reconstruction": 2 * F.mse_loss(of_sum, cells),
            "cross": 2 * cross,
            "basal": 2 * masked_mse(of_basal, controls, has_control),
            "similarity": similarity(*shared.chunk(2), symmetric=self.symmetric_similarity),
            "orthogonality": 2 * orthogonality(basal, effect),
            "combination": F.mse_loss(of_double, doubles) if len(doubles) else of_double.sum(),
        }
        # an ablated term leaves the graph, where 0 times infinity would stay
        total = sum(self.weights[name] * term for name, term in terms.items() if self.weights[name] != 0)
        with torch.no_grad():
            watched = {
                "cross_r2": 1 - cross / (cells - cells.mean(0)).square().mean().clamp(min=1e-12),
                "basal_norm": basal.norm(dim=1).mean(),
                "effect_norm": effect.norm(dim=1).mean(),
            }
        metrics = {name: term.detach() for name, term in terms.items()} | watched
        return LossOutput(loss=total, n_obs_minibatch=len(kind), extra_metrics=metrics)
