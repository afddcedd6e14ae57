"""Which retrieval models there are, by the name that commands take; each is imported when it is asked for."""

from __future__ import annotations

import difflib
from importlib import import_module
from typing import TYPE_CHECKING

from recsys.errors import SettingsError

if TYPE_CHECKING:  # the command line imports this file for the names
    from recsys.models.retrieval import RetrievalModel

MODELS = {
    "popularity": "recsys.models.popularity:Popularity",
    "covisitation": "recsys.models.item_to_item.covisitation:Covisitation",
    "ease": "recsys.models.item_to_item.ease:Ease",
    "normalized_ease": "recsys.models.item_to_item.normalized_ease:NormalizedEase",
    "sparse_ease": "recsys.models.item_to_item.sparse_ease:SparseEase",
    "graph_filter": "recsys.models.item_to_item.graph_filter:GraphFilter",
    "gf_cf": "recsys.models.item_to_item.graph_filter:GfCf",
    "bspm": "recsys.models.item_to_item.graph_filter:Bspm",
    "ials": "recsys.models.factors.ials:Ials",
    "svd": "recsys.models.factors.svd:Svd",
    "bpr": "recsys.models.factors.pairwise:Bpr",
    "warp": "recsys.models.factors.pairwise:Warp",
    "logistic": "recsys.models.factors.pairwise:Logistic",
    "two_tower": "recsys.training.two_tower_model:TwoTowerModel",
    "sasrec": "recsys.training.sequence_model:SasRec",
    "gru4rec": "recsys.training.sequence_model:Gru4Rec",
    "auto": "recsys.advisor.auto:Auto",
}


def model_name(name: str) -> str:
    """`name` as it stands in MODELS: SASRec is sasrec, two-tower two_tower. Raises SettingsError."""
    plain = {known.replace("_", ""): known for known in MODELS}
    known = plain.get(name.lower().replace("-", "").replace("_", ""))
    if known is None:
        near = difflib.get_close_matches(name.lower(), MODELS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise SettingsError(f"no model {name!r}; {hint}there are {', '.join(MODELS)}")
    return known


def model_class(name: str) -> type[RetrievalModel]:
    """The class of model `name`, a dataclass of settings. Raises SettingsError for an unknown name."""
    module, _, attribute = MODELS[model_name(name)].partition(":")
    found: type[RetrievalModel] = getattr(import_module(module), attribute)
    return found
