from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from transverse._compat import registered_layer
from transverse._validation import align_genes, check_log_normalized, examples

from ._cells import Cells
from ._constants import XTRANSFERCDR_KEYS
from ._design import canonical_names
from ._sources import UNKNOWN


class CellAccessMixin:
    """Cells of the training and of the user's, by what they are; and their way through the networks."""

    @property
    def _setup_arguments(self) -> dict:
        arguments = self.registry["setup_args"]
        return {**arguments, "control": str(arguments["control"])}

    def _names(self) -> dict[str, np.ndarray]:
        """Perturbation, in canonical form, and context and batch of every cell of the model's data, as strings."""
        manager = self.adata_manager
        names = {}
        for key in (XTRANSFERCDR_KEYS.PERTURBATION_KEY, XTRANSFERCDR_KEYS.CONTEXT_KEY, XTRANSFERCDR_KEYS.BATCH_KEY):
            categories = manager.get_state_registry(key).categorical_mapping
            codes = manager.get_from_registry(key).ravel()
            names[key] = np.array([str(name) for name in categories], dtype=object)[codes]
        arguments = self._setup_arguments
        names["perturbation"] = canonical_names(names["perturbation"], arguments["control"], arguments["delimiter"])
        if arguments["context_key"] is None:
            names["context"] = np.full(len(names["context"]), "", dtype=object)
        return names

    def _all_cells(self, adata: AnnData | None) -> Cells:
        """Cells of the model's data, or of others, which need no labels that the model knows, nor any at all."""
        if adata is not None and adata is not self.adata:
            return self._foreign_cells(adata, "adata", UNKNOWN, UNKNOWN)
        if self.adata is None:
            raise ValueError("The model was loaded without data: pass adata=.")
        names = self._names()
        layer = registered_layer(self.adata_manager)
        return Cells(self.adata, np.arange(self.adata.n_obs), layer, names["perturbation"], names["context"])

    def _training_cells(self) -> Cells:
        """Cells that the model was trained on; of other data than those, all."""
        if self.adata is None:
            raise ValueError(
                "The model was loaded without data. Load it with the training data, or pass controls= (and reference=, where "
                "single cells of the perturbation are needed)."
            )
        cells = self._all_cells(None)
        trained = self.adata.obs_names.isin(self.training_cells_)
        return cells.where(trained) if trained.any() else cells

    def _control_cells(self, context: str, controls: AnnData | None) -> Cells:
        control = self._setup_arguments["control"]
        if controls is None:
            cells = self._training_cells()
            cells = cells.where((cells.perturbations == control) & (cells.contexts == context))
            if not len(cells):
                raise ValueError(f"adata has no control cells of context={context!r}. Pass some as controls=.")
            return cells
        cells = self._foreign_cells(controls, "controls", control, context)
        for key, found, expected in (
            ("perturbation_key", cells.perturbations, control),
            ("context_key", cells.contexts, context),
        ):
            if len(other := found[found != expected]):
                column = self._setup_arguments[key]
                raise ValueError(
                    f"controls must have only cells with {expected!r} in obs[{column!r}], but has {examples(np.unique(other))}."
                )
        return cells

    def _reference_cells(self, reference: AnnData, singles: Sequence[str]) -> Cells:
        key = self._setup_arguments["perturbation_key"]
        if isinstance(reference, AnnData) and key not in reference.obs and len(singles) > 1:
            raise ValueError(
                f"reference needs obs[{key!r}], to tell which cells had which of the perturbations {examples(singles)}."
            )
        return self._foreign_cells(reference, "reference", singles[0], UNKNOWN)

    def _foreign_cells(self, adata: AnnData, argument: str, perturbation: str, context: str) -> Cells:
        """Cells of the user's, checked; what their ``obs`` does not say is as given."""
        if not isinstance(adata, AnnData):
            raise TypeError(f"{argument} must be an AnnData, but got {type(adata).__name__}.")
        if adata.n_obs == 0:
            raise ValueError(f"{argument} has no cells.")
        arguments = self._setup_arguments
        layer = registered_layer(self.adata_manager) if self.adata is not None else arguments["layer"]
        adata = align_genes(adata, self.var_names_, argument)
        check_log_normalized(adata, layer, argument)
        labels = []
        for key, otherwise in ((arguments["perturbation_key"], perturbation), (arguments["context_key"], context)):
            if key is None:
                otherwise = ""
            found = adata.obs[key] if key in adata.obs else pd.Series(otherwise, index=adata.obs_names)
            if found.isna().any():
                raise ValueError(f"{argument}.obs[{key!r}] is missing for {int(found.isna().sum())} cells.")
            labels.append(found.astype(str).to_numpy(dtype=object))
        names = canonical_names(labels[0], arguments["control"], arguments["delimiter"])
        return Cells(adata, np.arange(adata.n_obs), layer, names, labels[1])

    @torch.inference_mode()
    def _encode(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Basal states and effects of some profiles."""
        self.module.eval()
        outputs = self.module.inference(torch.from_numpy(x))
        return outputs["basal"].cpu().numpy(), outputs["effect"].cpu().numpy()

    @torch.inference_mode()
    def _decode(self, z: np.ndarray) -> np.ndarray:
        """Expression from sums of basal states and effects."""
        self.module.eval()
        return self.module.generative(torch.from_numpy(np.ascontiguousarray(z, dtype=np.float32)))["x"].cpu().numpy()
