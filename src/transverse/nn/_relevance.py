"""Layer-wise relevance propagation through scvi-tools' encoder."""

from __future__ import annotations

from copy import deepcopy
from typing import Literal

import torch
from scvi.nn import FCLayers
from torch import nn
from zennit.canonizers import SequentialMergeBatchNorm
from zennit.core import Composite, Hook
from zennit.rules import Epsilon, Gamma, Pass


def latent_relevance(
    layers: FCLayers,
    mean_encoder: nn.Linear,
    inputs: torch.Tensor,
    *,
    rule: Literal["gamma", "epsilon"] = "gamma",
    gamma: float = 0.15,
    epsilon: float = 1e-6,
) -> torch.Tensor:
    r"""Relevance of every input of the encoder for every dimension of the latent mean :math:`\mu`.

    The relevance of one latent dimension, :math:`R_d = \mu_d`, is handed down from layer to layer. With
    :math:`z_{jk} = a_j w_{jk}` the contribution of neuron :math:`j` to neuron :math:`k`, the LRP-:math:`\gamma` rule is

    .. math::
        R_j = \sum_k \frac{z_{jk} + \gamma z_{jk}^{\pm}}{\sum_l \left(z_{lk} + \gamma z_{lk}^{\pm}\right)} R_k,

    where :math:`z^{\pm}` is the positive part of the contributions if neuron :math:`k` is positive before its activation
    and their negative part if it is negative. For :math:`a_j \ge 0` and a positive neuron this is the scSpecies paper's
    equation 29, with :math:`a_j (w_{jk} + \gamma w_{jk}^+)` as the numerator. The LRP-:math:`\epsilon` rule has
    :math:`\gamma = 0`. Both stabilise the denominator by :math:`\epsilon`, with the sign of the denominator.

    Parameters
    ----------
    layers
        Hidden layers of a :class:`scvi.nn.Encoder` (``encoder.encoder``), with covariates in the first layer only.
    mean_encoder
        Linear map from the last hidden layer to the latent mean (``encoder.mean_encoder``). It follows the same rule.
    inputs
        Input of the first linear map, of shape ``(n_cells, n_inputs)``: genes, continuous covariates and one-hot
        categories (:func:`~transverse.nn.encoder_inputs`).
    rule
        Rule for the linear maps.
    gamma
        How much the contributions that agree with a neuron's sign are emphasised; ignored by the ``"epsilon"`` rule.
    epsilon
        Stabiliser of the denominators. For the ``"epsilon"`` rule larger values also damp weak neurons.

    Returns
    -------
    Tensor of shape ``(n_cells, n_latent, n_inputs)``, in the units of :math:`\mu`.

    Notes
    -----
    These are choices where the paper is silent or leaves room:

    - A negative neuron mirrors the positive one: the relevance for :math:`\mu_d` is minus the one for :math:`-\mu_d`.
      (In a ReLU network without layer normalisation only the latent mean can be negative and relevant.) Equation 29 as
      it is written would divide a negative :math:`\mu_d` by a sum that the emphasis on positive weights brings close
      to zero.
    - Biases get no share, so that relevance is conserved: :math:`\sum_j R_j = \mu_d` up to the stabiliser. The paper
      counts a bias as one more neuron, whose relevance never reaches the inputs. A neuron that is active through its
      bias alone, without an active neuron below, loses its relevance.
    - Batch normalisation, in evaluation mode, is merged into the linear map before it. The merged biases take the mean
      away from the contributions, which therefore need not agree with the sign of a neuron any more: their sum, the
      denominator, can be close to zero, and relevances of opposite sign then grow far beyond :math:`\mu_d` while their
      sum stays what it is. Without batch normalisation, as in the paper, this was rare under the LRP-:math:`\gamma`
      rule; under the LRP-:math:`\epsilon` rule it happens in any network.
    - Layer normalisation, activations and dropout pass relevance on unchanged.
    """
    _check(layers, mean_encoder, inputs, rule, gamma, epsilon)
    # zennit works with gradients, whichever mode the caller is in
    with torch.inference_mode(False), torch.enable_grad():
        stack = _plain_stack(layers, mean_encoder)
        inputs = inputs.detach().clone().requires_grad_()
        if rule == "gamma":
            linear_rule = Gamma(gamma=gamma, stabilizer=epsilon, zero_params="bias")
        else:
            linear_rule = Epsilon(epsilon=epsilon, zero_params="bias")

        def rule_of(context: dict, name: str, module: nn.Module) -> Hook | None:
            if isinstance(module, nn.Linear):
                return linear_rule
            return None if module is stack else Pass()

        with Composite(rule_of).context(stack):
            mean = stack(inputs)
            relevance = inputs.new_empty(len(inputs), mean.shape[1], inputs.shape[1])
            # one backward pass for each dimension: no slower than one pass over repeated cells, in less memory
            for d in range(mean.shape[1]):
                start = torch.zeros_like(mean)
                start[:, d] = mean[:, d].detach()
                relevance[:, d] = torch.autograd.grad(mean, inputs, start, retain_graph=True)[0].detach()
    return relevance


def _check(layers, mean_encoder, inputs, rule, gamma, epsilon) -> None:
    if rule not in ("gamma", "epsilon"):
        raise ValueError(f"`rule` must be 'gamma' or 'epsilon', not {rule!r}.")
    if not gamma >= 0:
        raise ValueError(f"`gamma` must not be negative, but is {gamma}.")
    if not epsilon > 0:
        raise ValueError(f"`epsilon` must be positive, but is {epsilon}.")
    linear = [m for block in layers.fc_layers for m in block if isinstance(m, nn.Linear)] + [mean_encoder]
    if inputs.ndim != 2 or inputs.shape[1] != linear[0].in_features:
        raise ValueError(
            f"`inputs` must have shape (n_cells, {linear[0].in_features}), with one column for every gene, continuous "
            f"covariate and category, but has shape {tuple(inputs.shape)}."
        )
    if any(below.out_features != above.in_features for below, above in zip(linear, linear[1:], strict=False)):
        raise ValueError("Covariates must enter at the first layer of the encoder only (`inject_covariates=False`).")


def _plain_stack(layers: FCLayers, mean_encoder: nn.Linear) -> nn.Sequential:
    """Encoder up to the latent mean as a plain stack of copies, with batch normalisation merged."""
    modules = [module for block in layers.fc_layers for module in block if module is not None]
    stack = nn.Sequential(*(deepcopy(module) for module in (*modules, mean_encoder))).eval().requires_grad_(False)
    SequentialMergeBatchNorm().apply(stack)
    # what is left of them is not quite the identity in every version of zennit
    return nn.Sequential(*(module for module in stack if not isinstance(module, nn.BatchNorm1d)))
