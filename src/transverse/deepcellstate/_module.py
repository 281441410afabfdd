from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from scvi.module.base import BaseModuleClass, LossOutput, auto_move_data
from torch import nn
from torch.nn import functional as F

from transverse._compat import REGISTRY_KEYS

from ._constants import DEEPCELLSTATE_KEYS, PRESETS
from ._networks import NETWORKS, Architecture

Skip = Literal["tied", "separate", "none"]


class DeepCellStateModule(BaseModuleClass):
    r"""One encoder :math:`E` for all cell types, and a decoder :math:`D_c` for each.

    Signatures are divided by a scale of the training data, such that the largest value is 1.

    Parameters
    ----------
    n_genes, n_cell_types
        Genes, and cell types with a decoder.
    architecture
        ``"dense"``: layers over all genes, as the paper's text may be read. ``"pointwise"``: layers that see one gene at
        a time, with weights that all genes share, as the reference is built.
    n_hidden
        Widths of the encoder's hidden layers, mirrored in the decoders (reference and paper: ``(512, 256)``).
    n_latent
        Width of the latent space (128).
    skip
        What of the input reaches the decoder's output directly: nothing (``"none"``), or the value of the gene itself,
        with the mask of the encoder's input dropout (``"tied"``, as the paper's figure may be read) or one of its own
        (``"separate"``, reference).
    preset
        The reference's sets of regularisation, 0 to 3, which give the three rates that are None.
    input_dropout_rate
        Share of the input values that are set to 0 in training.
    latent_l1
        Weight :math:`\lambda` of the L1 norm of the latent in the loss.
    decoder_dropout_rate
        Dropout of the decoder's last hidden layer (not in the paper).

    Examples
    --------
    >>> import torch
    >>> import transverse as tv
    >>> module = tv.deepcellstate.DeepCellStateModule(n_genes=50, n_cell_types=3, n_hidden=(16,), n_latent=4)
    >>> x = torch.rand(6, 50)
    """

    def __init__(
        self,
        n_genes: int,
        n_cell_types: int,
        architecture: Architecture = "dense",
        n_hidden: Sequence[int] = (512, 256),
        n_latent: int = 128,
        skip: Skip = "separate",
        preset: int = 0,
        input_dropout_rate: float | None = None,
        latent_l1: float | None = None,
        decoder_dropout_rate: float | None = None,
    ):
        super().__init__()
        rates = {
            "input_dropout_rate": input_dropout_rate,
            "latent_l1": latent_l1,
            "decoder_dropout_rate": decoder_dropout_rate,
        }
        _check(architecture, n_hidden, n_latent, skip, preset, rates)
        rates = {key: PRESETS[preset][key] if value is None else float(value) for key, value in rates.items()}
        self.input_dropout_rate, self.latent_l1 = rates["input_dropout_rate"], rates["latent_l1"]
        self.skip = skip
        make_encoder, make_decoder = NETWORKS[architecture]
        self.encoder = make_encoder(n_genes, n_hidden, n_latent)
        self.decoders = nn.ModuleList(
            make_decoder(n_latent, n_hidden, n_genes, rates["decoder_dropout_rate"], skip != "none")
            for _ in range(n_cell_types)
        )
        self.register_buffer("scale", torch.tensor(1.0))

    def _get_inference_input(self, tensors: dict[str, torch.Tensor], **kwargs) -> dict[str, torch.Tensor]:
        return {"x": tensors[REGISTRY_KEYS.X_KEY] / self.scale}

    @auto_move_data
    def inference(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Encode signatures.

        Parameters
        ----------
        x
            Signatures in units of the scale, shape ``(n_signatures, n_genes)``.

        Returns
        -------
        ``z``, the latent, shape ``(n_signatures, n_latent)``, and ``x``, what the skip connection sees. In training both
        are of inputs with dropout.

        Examples
        --------
        >>> tuple(module.inference(x)["z"].shape)
        (6, 4)
        """
        dropped = F.dropout(x, self.input_dropout_rate, self.training)
        seen = F.dropout(x, self.input_dropout_rate, self.training) if self.skip == "separate" else dropped
        return {"z": self.encoder(dropped), "x": seen}

    def _get_generative_input(
        self, tensors: dict[str, torch.Tensor], inference_outputs: dict[str, torch.Tensor], **kwargs
    ) -> dict[str, torch.Tensor]:
        return {**inference_outputs, "decoder": int(tensors[DEEPCELLSTATE_KEYS.DECODER_KEY])}

    @auto_move_data
    def generative(self, z: torch.Tensor, x: torch.Tensor | None, decoder: int) -> dict[str, torch.Tensor]:
        """Decode to one cell type.

        Parameters
        ----------
        z
            Latent, shape ``(n_signatures, n_latent)``.
        x
            Input of the skip connection, in units of the scale, shape ``(n_signatures, n_genes)``; None leaves it out.
        decoder
            Number of the cell type.

        Returns
        -------
        ``x``: signatures in units of the scale, shape ``(n_signatures, n_genes)``.

        Examples
        --------
        >>> outputs = module.inference(x)
        >>> tuple(module.generative(**outputs, decoder=1)["x"].shape)
        (6, 50)
        """
        return {"x": self.decoders[decoder](z, x)}

    def loss(
        self,
        tensors: dict[str, torch.Tensor],
        inference_outputs: dict[str, torch.Tensor],
        generative_outputs: dict[str, torch.Tensor],
    ) -> LossOutput:
        r"""Squared error in units of the scale, and the L1 norm of the latent, of :math:`B` pairs.

        .. math::

            L = \frac{1}{B G} \sum_{i,g} (\hat x_{ig} - y_{ig})^2 + \lambda \frac{1}{B} \sum_i \lVert z_i \rVert_1

        Examples
        --------
        >>> _, _, output = module({"X": x, "target": x, "decoder": torch.tensor(0)})
        >>> sorted(output.extra_metrics)
        ['error', 'latent_l1']
        """
        target = tensors[DEEPCELLSTATE_KEYS.TARGET_KEY] / self.scale
        error = F.mse_loss(generative_outputs["x"], target)
        l1 = inference_outputs["z"].abs().sum(dim=1).mean()
        total = error + self.latent_l1 * l1 if self.latent_l1 else error
        metrics = {"error": error.detach(), "latent_l1": l1.detach()}
        return LossOutput(loss=total, n_obs_minibatch=len(target), extra_metrics=metrics)


def _check(architecture, n_hidden, n_latent, skip, preset, rates: dict[str, float | None]) -> None:
    for name, value, known in (
        ("architecture", architecture, get_args(Architecture)),
        ("skip", skip, get_args(Skip)),
        ("preset", preset, tuple(PRESETS)),
    ):
        if value not in known:
            raise ValueError(f"{name}={value!r} must be one of {', '.join(map(repr, known))}.")
    if not n_hidden or min(n_hidden) < 1:
        raise ValueError(f"n_hidden must be positive widths, but got {tuple(n_hidden)}.")
    if n_latent < 1:
        raise ValueError(f"n_latent={n_latent} must be positive.")
    for name, value in rates.items():
        if value is None:
            continue
        if name == "latent_l1":
            if not value >= 0:
                raise ValueError(f"{name}={value} must not be negative.")
        elif not 0 <= value < 1:
            raise ValueError(f"{name}={value} must be at least 0 and below 1.")
