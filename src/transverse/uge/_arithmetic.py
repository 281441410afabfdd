"""What a drug does in an organ and species where it was not tried."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd
from anndata import AnnData

from transverse._groups import dense
from transverse._validation import examples

from ._samples import check_batch_size

Via = Literal["map", "reactome", "A", "B", "C"]
_WAYS = ("map", "reactome", "A", "B", "C")


class ArithmeticMixin:
    """Predictions of conditions."""

    def predict(
        self,
        species: str,
        organ: str,
        drug: str,
        *,
        via: Via = "map",
        source: str | None = None,
        output: Literal["change", "decoded"] = "change",
        allow_leak: bool = False,
        batch_size: int = 64,
    ) -> AnnData:
        r"""Predict the expression of an organ under a drug, in a species where it was not measured.

        From every control sample :math:`i` of the organ in the species that is in the training,

        .. math::

            \text{reactome (ours):}\quad & \hat x_{ig} = x_{ig} + \hat\Delta_{gok}, \\
            \text{map (ours):}\quad & \hat x_{ig} = x_{ig} + \textstyle\frac{1}{|S|} \sum_{s' \in S} \sum_{g'} \pi_{gg'}
                \hat\Delta_{g'ok}, \\
            A:\quad & \hat z_i = z_i + (\bar z_{s',o,k} - \bar z_{s',o,0}), \\
            B:\quad & \hat z_i = \bar z_{s',o,k} + \textstyle\frac{1}{|O|} \sum_{o'} (\bar z_{s,o',0} - \bar z_{s',o',0})
                + (z_i - \bar z_{s,o,0}), \\
            C:\quad & \text{the mean of A and B,}

        with mean representations :math:`\bar z` of species, organ and drug (0 is the control) of training samples, and the source
        species :math:`s'`. Where it was not given the drug in this organ, A takes the mean over its other organs. The paper names
        the terms of A, B and C but gives no formula.

        Parameters
        ----------
        species, organ, drug
            What to predict. Samples of it must not be in the training.
        via
            How.
            ``"map"`` carries over what the head of reactomes says of the genes :math:`g'` that each gene is mapped to, with
            the probabilities :math:`\pi` of :meth:`map_genes` (temperature 0.04, the 50 likeliest), in the species :math:`S`
            that have the condition; where none has, in all, the gene's own included.
        source
            Species to carry the effect from, for A to C; by default all others that have it, averaged.
        output
            ``"change"``: for A to C add the decoded change to the control sample,
            :math:`x_i + D(\hat z_i) - D(z_i)` (ours). ``"decoded"``: :math:`D(\hat z_i)`.
        allow_leak
            Accept a condition that the model was trained on; ``uns`` then says so. Its samples enter no mean of A to C even so.
        batch_size
            Samples in a mini-batch; does not change the result.

        Returns
        -------
        AnnData with a row for each control sample of the training and the genes of the species: ``X`` is the prediction on the scale of the
        data, ``layers["control"]`` the sample it starts from; ``obs`` has the columns of the setup and ``control_sample``;
        ``uns["prediction"]`` says how, from which species, and whether there was a leak.

        Raises
        ------
        RuntimeError
            If the model is not trained.
        KeyError
            If species, organ or drug are unknown.
        ValueError
            If there are no control samples to start from, nothing to carry over, or the condition was trained on.

        Examples
        --------
        >>> pred = model.predict("rat", "brain", "drug A")
        >>> pred.uns["prediction"]["leak"]
        'none'
        >>> pred = model.predict("rat", "brain", "drug A", via="A", source="mouse")
        """
        self._check_if_trained(warn=False)
        if via not in _WAYS:
            raise ValueError(f"via={via!r} must be one of {', '.join(map(repr, _WAYS))}.")
        check_batch_size(batch_size)
        if output not in ("change", "decoded"):
            raise ValueError(f"output={output!r} must be 'change' or 'decoded'.")
        s, o, k = self._species_of(species), self._organ_of(organ), self._drug_of(drug)
        if self.adata is None:
            raise ValueError(
                "The model was loaded without data: load it with the training data, which predictions start from."
            )
        leak = (str(species), str(organ), str(drug)) in set(self.training_conditions_)
        if leak and not allow_leak:
            raise ValueError(
                f"The model was trained on {species!r}, {organ!r}, {drug!r}: the prediction would be shown the answer. Leave its "
                "samples out of the training, train(hold_out=[(species, organ, drug)]), or pass allow_leak=True."
            )
        if via not in ("map", "reactome"):
            self._check_stage("samples", f"it has no decoder for via={via!r}")
        table = self._training_samples()
        here = table["species"].eq(str(species)) & table["organ"].eq(str(organ))
        controls = table.index[here & table["drug"].eq(self.drugs_[0])].to_numpy()
        if not len(controls):
            raise ValueError(f"The training has no control samples of {organ!r} in {species!r} to start from.")
        genes = np.flatnonzero(self._gene_species == s)
        matrix = self.adata.X if self._layer is None else self.adata.layers[self._layer]
        x = dense(matrix[controls])[:, genes].astype(np.float32)
        sources: list[str] = []
        if via in ("map", "reactome"):
            change = self._predicted_changes(s) if via == "reactome" else self._mapped_changes(s)
            predicted = x + change[:, o, k - 1].astype(np.float32)
        else:
            # neither the asked condition's samples nor any other species than those that are asked lend their mean
            table = table[~(here & table["drug"].eq(str(drug)))]
            sources = self._sources(table, str(species), str(drug), source)
            if via != "A":
                of_organ = table.loc[table["organ"].eq(str(organ)) & table["drug"].eq(str(drug)), "species"]
                sources = [name for name in sources if name in set(of_organ)] or sources
            z, moved = self._moved(table, controls, str(species), str(organ), str(drug), sources, via, batch_size)
            predicted = self._decoded(moved, genes, s, batch_size)
            if output == "change":
                predicted = x + predicted - self._decoded(z, genes, s, batch_size)
        arguments = self.registry["setup_args"]
        names = self.adata.obs_names[controls].astype(object)
        obs = pd.DataFrame({"control_sample": names.to_numpy()}, index=names, dtype=object)
        for key, value in (("species_key", species), ("organ_key", organ), ("drug_key", drug)):
            if arguments[key] is not None:
                obs[arguments[key]] = pd.Categorical([str(value)] * len(obs))
        var = pd.DataFrame(
            {arguments["species_key"]: str(species)}, index=pd.Index(np.array(self.var_names_, dtype=object)[genes])
        )
        pred = AnnData(predicted, obs=obs, var=var, layers={"control": x})
        pred.uns["prediction"] = {
            "method": type(self).__name__,
            "species": str(species),
            "organ": str(organ),
            "drug": str(drug),
            "via": via,
            "output": "change" if via in ("map", "reactome") else output,
            "source": np.array(sources, dtype=object),
            "scale": "that of the data",
            "leak": "trained on" if leak else "none",
        }
        return pred

    def _organ_of(self, organ: str) -> int:
        if str(organ) not in self.organs_:
            raise KeyError(f"Unknown organ {organ!r}. Known: {examples(self.organs_, 20)}.")
        return self.organs_.index(str(organ))

    def _drug_of(self, drug: str) -> int:
        if str(drug) not in self.drugs_[1:]:
            raise KeyError(f"Unknown drug {drug!r}. Known: {examples(self.drugs_[1:], 20)}.")
        return self.drugs_.index(str(drug))

    def _training_samples(self) -> pd.DataFrame:
        """Species, organ and drug of the training samples, by their positions."""
        table = pd.DataFrame(dict(zip(("species", "organ", "drug"), self._condition_names(), strict=True)))
        return table.loc[self._training_rows()]

    def _training_rows(self) -> np.ndarray:
        return np.flatnonzero(self.adata.obs_names.isin(self.training_samples_))

    def _training_latent(self, batch_size: int) -> np.ndarray:
        """Representations of the training samples, computed once."""
        if "latent" not in self._derived:
            self._derived["latent"] = self._latent(self.adata, self._training_rows(), batch_size)
        return self._derived["latent"]

    def _sources(self, table: pd.DataFrame, species: str, drug: str, source: str | None) -> list[str]:
        having = [
            name
            for name in self.species_
            if name != species and (table["species"].eq(name) & table["drug"].eq(drug)).any()
        ]
        if source is not None:
            self._species_of(source)
            having = [name for name in having if name == str(source)]
        if not having:
            raise ValueError(f"The training has no samples of {drug!r} in {source or 'another species'} to carry over.")
        return having

    def _moved(self, table, controls, species, organ, drug, sources, via, batch_size) -> tuple[np.ndarray, np.ndarray]:
        """Representations of control samples, and where the arithmetic takes them."""
        control = self.drugs_[0]
        all_z = self._training_latent(batch_size)[pd.Index(self._training_rows()).get_indexer(table.index)]
        means = {
            condition: all_z[rows].mean(axis=0)
            for condition, rows in table.reset_index(drop=True).groupby(["species", "organ", "drug"]).indices.items()
        }
        z = all_z[pd.Index(table.index).get_indexer(controls)]
        own = means[species, organ, control]
        moved = []
        for name in sources:
            organs = [q for q in self.organs_ if {(name, q, drug), (name, q, control)} <= set(means)]
            if not organs:
                raise ValueError(
                    f"The training has no controls of the organs of {name!r} that have samples of {drug!r}."
                )
            organs = [organ] if organ in organs else organs
            effect = np.mean([means[name, q, drug] - means[name, q, control] for q in organs], axis=0)
            a = z + effect
            if via == "A":
                moved.append(a)
                continue
            if (name, organ, drug) not in means:
                raise ValueError(
                    f"via={via!r} needs samples of {drug!r} in {organ!r} of {name!r}, of which there are none."
                )
            both = [q for q in self.organs_ if {(name, q, control), (species, q, control)} <= set(means)]
            if not both:
                raise ValueError(f"{species!r} and {name!r} have control samples of no organ in common.")
            shift = np.mean([means[species, q, control] - means[name, q, control] for q in both], axis=0)
            b = means[name, organ, drug] + shift + (z - own)
            moved.append(b if via == "B" else (a + b) / 2)
        return z, np.mean(moved, axis=0)
