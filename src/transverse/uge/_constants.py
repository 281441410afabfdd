from typing import NamedTuple


class _Keys(NamedTuple):
    SPECIES_KEY: str = "species"
    ORGAN_KEY: str = "organ"
    DRUG_KEY: str = "drug"
    ANIMAL_KEY: str = "animal"
    # a mini-batch of samples
    TOKENS_KEY: str = "tokens"
    VALUES_KEY: str = "values"
    BINS_KEY: str = "bins"
    CONDITIONS_KEY: str = "conditions"
    SAMPLES_KEY: str = "samples"
    # a mini-batch of genes
    GENES_KEY: str = "genes"


UGE_KEYS = _Keys()

PRESETS: dict[str, dict] = {
    "paper": {"n_hidden": 256, "n_layers": 4, "n_heads": 8},
    "small": {"n_hidden": 128, "n_layers": 2, "n_heads": 4},
    "tiny": {"n_hidden": 64, "n_layers": 2, "n_heads": 4},
}
