from typing import NamedTuple


class _Keys(NamedTuple):
    PERTURBATION_KEY: str = "perturbation"
    CONTEXT_KEY: str = "context"
    BATCH_KEY: str = "batch"
    KIND_KEY: str = "pair_kind"
    HAS_CONTROL_KEY: str = "has_control"


XTRANSFERCDR_KEYS = _Keys()

# what the partners of a pair share, and what is swapped between them
SAME_CONTEXT, SAME_PERTURBATION, COMBINATION = 0, 1, 2
