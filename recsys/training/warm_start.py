"""A two-tower that begins where an earlier fit ended, whatever items and users are new since.

Decides what of the earlier fit counts: all that was learned of things which still have the same row or
bucket. No Ray.
"""

import numpy as np
import torch

from recsys.errors import SettingsError
from recsys.models.retrieval import Arrays
from recsys.models.two_tower.module import TwoTower

_NAMES = {"user.weight": "weight", "user.bias": "bias"}


def start_from(module: TwoTower, start: Arrays) -> None:
    """Sets what `FittedTwoTower.arrays` of an earlier fit knows; items that it knew nothing of, those beyond
    its rows among them, stay as they are.

    Raises SettingsError where the arrays are of other shapes, or of another model.
    """
    for name, parameter in module.state_dict().items():
        key = name.removesuffix(".weight")
        if name == "id.weight":
            continue
        array = start.get(key if key in ("user_id", "attribute") else f"encoder.{_NAMES.get(name, key)}")
        if array is None:
            raise SettingsError(f"the arrays to start from have no {key}: they are no fit of a two-tower")
        if array.shape != tuple(parameter.shape):
            raise SettingsError(
                f"the earlier fit's {key} is {array.shape} where this model's is {tuple(parameter.shape)}: "
                "use the settings that it was made with"
            )
        parameter.copy_(torch.from_numpy(np.array(array)))
    old = start["encoder.history"][: len(module.id.weight)]
    words = module.raw_items(len(old), np.zeros(len(old), bool))
    # A vector of 0 has no direction: its first gradient is so large that Adam hardly moves it after that.
    known = np.flatnonzero(old.any(axis=1))
    with torch.no_grad():
        module.id.weight[known] = torch.from_numpy(old[known] - words[known]).to(module.id.weight)
