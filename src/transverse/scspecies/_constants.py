from typing import NamedTuple


class _SCSPECIES_KEYS(NamedTuple):
    # tensors of a training batch
    CELL_KEY: str = "cell"
    CANDIDATES_KEY: str = "candidates"
    ELIGIBLE_KEY: str = "eligible"
    # outputs of the module
    INTERMEDIATE_KEY: str = "intermediate"
    ALIGNMENT_KEY: str = "alignment_loss"


SCSPECIES_KEYS = _SCSPECIES_KEYS()
