"""The decision tree: from the profile of a data set to the architecture and the models that suit it.

Decides by size first (little data can't teach a model, a large catalog can't be scored whole), then by
what is known and asked. Each answer comes with its reason. What is best among the models of a leaf is
not decided here: `auto` tries them.
"""

from dataclasses import dataclass
from enum import Enum

from recsys.advisor.profile import Profile
from recsys.interactions import Asked

FEW_ITEMS = 100
FEW_EVENTS = 1000
MANY_ITEMS = 100_000  # more are retrieved first, then ranked
MANY_COLD = 0.2  # share of items
MOSTLY = 0.5  # share that makes a data set explicit, or described
ONLINE_MS = 50.0  # what must be faster is not computed when it is asked for


class Leaf(Enum):
    CURATION = "curation"
    SPARSE = "content or popularity"
    CONTENT_TOWER = "retrieval and ranking, with a content tower"
    HYBRID_TOWER = "retrieval and ranking, content and collaborative"
    ID_TOWER = "retrieval and ranking, by ids"
    SESSION = "a session model"
    FACTORIZATION = "factorization"
    LINEAR = "linear and pairwise models"


@dataclass(frozen=True, slots=True)
class Decision:
    leaf: Leaf
    models: tuple[str, ...]  # by promise
    answers: str  # "online", "precomputed" or "cached"
    refresh: str  # "with each event" or "daily"
    reasons: tuple[str, ...]

    @property
    def ranked(self) -> bool:
        """A ranker orders what retrieval found."""
        return self.leaf in (Leaf.CONTENT_TOWER, Leaf.HYBRID_TOWER, Leaf.ID_TOWER)


_LINEAR = (
    *("graph_filter", "popularity", "bspm", "ials", "normalized_ease", "ease"),
    *("two_tower", "warp", "bpr"),
)
_TOWERS = ("two_tower", "popularity", "covisitation", "ials", "bpr")


def decide(found: Profile, *, latency_ms: float = 100.0, real_time: bool = False) -> Decision:
    """`latency_ms` is what a request may take; with `real_time` what somebody did a moment ago counts."""
    leaf, models, reasons = _leaf(found, real_time=real_time)
    moment = leaf is Leaf.SESSION
    if latency_ms >= ONLINE_MS:
        how = "leave time to answer online"
    elif moment:
        how = f"are under {ONLINE_MS:g} ms: an answer is cached until the next event of its user"
    else:
        how = f"are under {ONLINE_MS:g} ms: answers are computed before they are asked for"
    return Decision(
        leaf,
        models,
        answers="online" if latency_ms >= ONLINE_MS else "cached" if moment else "precomputed",
        refresh="with each event" if moment else "daily",
        reasons=(*reasons, f"{latency_ms:g} ms {how}"),
    )


def _leaf(found: Profile, *, real_time: bool) -> tuple[Leaf, tuple[str, ...], list[str]]:
    if found.items < FEW_ITEMS:
        few = (
            f"{found.items:,} items are under {FEW_ITEMS:,}: an editor sees them all, popularity orders them"
        )
        return Leaf.CURATION, ("popularity",), [few]
    if found.events < FEW_EVENTS:
        few = f"{found.events:,} events are under {FEW_EVENTS:,}: too few to learn tastes from"
        if found.described > MOSTLY:
            return Leaf.SPARSE, ("popularity", "logistic"), [few, "items are described: content helps"]
        return Leaf.SPARSE, ("popularity",), [few, "items are not described: popularity is what is left"]
    if found.items > MANY_ITEMS:
        return _large(found)
    one = f"{found.items:,} items are at most {MANY_ITEMS:,}: a single stage scores them all"
    leaf, models, why = _batch(found)
    if real_time or found.ordered:
        why = _WHY_ORDER[found.asked]
        sequence = ("covisitation", "popularity", "sasrec", "gru4rec", "two_tower")
        return Leaf.SESSION, tuple(dict.fromkeys((*sequence, *models))), [one, why]
    return leaf, models, [one, why]


_WHY_ORDER = {
    Asked.SESSION: "users are sessions: what was done a moment ago is all that is known",
    Asked.NEXT: "what comes next is asked for, and the log has an order",
    Asked.MISSING: "what was done a moment ago shall count",
    Asked.OTHER: "what was done a moment ago shall count",
}


def _large(found: Profile) -> tuple[Leaf, tuple[str, ...], list[str]]:
    reasons = [f"{found.items:,} items are over {MANY_ITEMS:,}: retrieval first, then ranking"]
    if found.cold_items > MANY_COLD and found.described:
        cold = f"{found.cold_items:.0%} of the items are cold (over {MANY_COLD:.0%}): only content finds them"
        return Leaf.CONTENT_TOWER, _TOWERS, [*reasons, cold]
    if found.described > MOSTLY:
        return Leaf.HYBRID_TOWER, _TOWERS, [*reasons, f"{found.described:.0%} of the items are described"]
    return Leaf.ID_TOWER, _TOWERS, [*reasons, "items are not described: ids must suffice"]


def _batch(found: Profile) -> tuple[Leaf, tuple[str, ...], str]:
    if found.explicit > MOSTLY:
        models = tuple(dict.fromkeys(("ials", "popularity", "svd", "logistic", *_LINEAR)))
        return Leaf.FACTORIZATION, models, f"{found.explicit:.0%} of the events have a rating"
    return Leaf.LINEAR, _LINEAR, "what was taken is known, and no rating: implicit feedback"
