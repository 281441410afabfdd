"""Layers and likelihoods that the methods share."""

from ._encoder import encoder_inputs, encoder_linear_inputs, run_layers
from ._likelihood import candidate_log_likelihood, nb_log_likelihood, zinb_log_likelihood
from ._relevance import latent_relevance
from ._split_softmax import SplitSoftmax

__all__ = [
    "SplitSoftmax",
    "candidate_log_likelihood",
    "encoder_inputs",
    "encoder_linear_inputs",
    "latent_relevance",
    "nb_log_likelihood",
    "run_layers",
    "zinb_log_likelihood",
]
