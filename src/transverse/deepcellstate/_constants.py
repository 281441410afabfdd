from typing import NamedTuple


class _Keys(NamedTuple):
    PERTURBATION_KEY: str = "perturbation"
    CELL_TYPE_KEY: str = "cell_type"
    PERTURBATION_TYPE_KEY: str = "perturbation_type"
    TARGET_KEY: str = "target"
    DECODER_KEY: str = "decoder"
    GROUP_KEY: str = "group"


DEEPCELLSTATE_KEYS = _Keys()

# the reference's sets of regularisation
PRESETS: dict[int, dict[str, float]] = {
    0: {"input_dropout_rate": 0.1, "latent_l1": 0.0, "decoder_dropout_rate": 0.5},
    1: {"input_dropout_rate": 0.2, "latent_l1": 1e-8, "decoder_dropout_rate": 0.8},
    2: {"input_dropout_rate": 0.5, "latent_l1": 1e-7, "decoder_dropout_rate": 0.8},
    3: {"input_dropout_rate": 0.5, "latent_l1": 1e-4, "decoder_dropout_rate": 0.9},
}
