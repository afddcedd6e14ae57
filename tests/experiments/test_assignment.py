"""Assignment: the same user is in the same arm for ever, shares are what was asked, layers independent."""

import numpy as np
import pytest
from scipy import stats

from recsys.errors import SettingsError
from recsys.experiments.assignment import BUCKETS, CONTROL, Arm, Experiment, Experiments, Layer
from recsys.pipeline.offline import batch_of

USERS = [f"user-{number}" for number in range(100_000)]
HALVES = {"a": Arm(0.5), "b": Arm(0.5, {"diversity.relevance_weight": 0.5, "diversity.pool": 9})}
THIRDS = {name: Arm(1 / 3) for name in ("x", "y", "z")}
EXPERIMENTS = Experiments(
    {
        "ranking": Layer({"big": Experiment(0.6, HALVES), "small": Experiment(0.1, {"only": Arm(1.0)})}),
        "diversity": Layer({"weight": Experiment(1.0, THIRDS)}),
    }
)

FROZEN = {
    "12347": ("big:b", "weight:z"),
    "12348": ("big:a", "weight:x"),
    "u001": ("big:a", "weight:y"),
    "anon:5f3a": ("big:b", "weight:x"),
    "user-7": ("big:a", "weight:y"),
    "ü": ("big:b", "weight:y"),
    "": ("control", "weight:x"),
}


@pytest.fixture(scope="module")
def arms() -> dict[str, np.ndarray]:
    return {
        layer: np.array([EXPERIMENTS.arm_of(layer, user) for user in USERS]) for layer in EXPERIMENTS.layers
    }


def test_the_same_arm_on_every_machine_and_for_ever():
    """Frozen: a change here would move users of running experiments between arms."""
    found = {u: (EXPERIMENTS.arm_of("ranking", u), EXPERIMENTS.arm_of("diversity", u)) for u in FROZEN}
    assert found == FROZEN


def test_shares_are_what_was_asked(arms):
    expected = {
        "ranking": {"big:a": 0.3, "big:b": 0.3, "small:only": 0.1, CONTROL: 0.3},
        "diversity": {"weight:x": 1 / 3, "weight:y": 1 / 3, "weight:z": 1 / 3},
    }
    for layer, shares in expected.items():
        assert set(arms[layer]) == set(shares)  # all traffic is given out, and none is lost to rounding
        for arm, share in shares.items():
            # Buckets are whole, so an arm may be half of one off; then a binomial draw.
            count = int((arms[layer] == arm).sum())
            low, high = stats.binom.interval(1 - 1e-5, len(USERS), share)
            slack = len(USERS) / BUCKETS
            assert low - slack <= count <= high + slack, arm


def test_layers_are_independent(arms):
    table = stats.contingency.crosstab(arms["ranking"], arms["diversity"]).count
    assert table.shape == (4, 3)
    assert stats.chi2_contingency(table).pvalue > 1e-4


def test_a_layer_of_the_same_salt_would_not_pass_the_check_above(arms):
    table = stats.contingency.crosstab(arms["ranking"], arms["ranking"]).count
    assert stats.chi2_contingency(table).pvalue < 1e-4


def test_more_traffic_moves_nobody_out_of_a_single_experiment():
    small, large = (
        Experiments({"l": Layer({"e": Experiment(traffic, {"a": Arm(1.0)})})}) for traffic in (0.1, 0.4)
    )
    inside = [u for u in USERS[:5000] if small.arm_of("l", u) != CONTROL]
    assert len(inside) > 300
    assert all(large.arm_of("l", user) == "e:a" for user in inside)


def test_no_layer_and_no_experiment():
    assert Experiments({}).layers == {}
    assert Experiments({"l": Layer({})}).arm_of("l", "u") == CONTROL
    assert Experiments({"l": Layer({"e": Experiment(0.0, HALVES)})}).arm_of("l", "u") == CONTROL


@pytest.mark.parametrize("shares", [(0.5, 0.6), (0.5, 0.4), (), (1.5, -0.5), (float("nan"), 1.0)])
def test_arms_that_do_not_sum_to_1_are_refused(shares):
    with pytest.raises(SettingsError, match="share"):
        Experiment(0.5, {str(number): Arm(share) for number, share in enumerate(shares)})


@pytest.mark.parametrize("traffic", [-0.1, 1.1, float("nan")])
def test_traffic_is_a_share(traffic):
    with pytest.raises(SettingsError, match="traffic"):
        Experiment(traffic, HALVES)


def test_a_layer_gives_out_no_more_than_it_has():
    with pytest.raises(SettingsError, match=r"1\.2 of its traffic"):
        Layer({"a": Experiment(0.6, HALVES), "b": Experiment(0.6, HALVES)})
    Layer({name: Experiment(1 / 3, HALVES) for name in "abc"})


def test_the_settings_that_arms_change():
    assert EXPERIMENTS.overrides({"ranking": "big:b", "diversity": "weight:x"}, "diversity") == {
        "relevance_weight": 0.5,
        "pool": 9,
    }
    assert EXPERIMENTS.overrides({"ranking": "big:b"}, "ranking") == {}
    assert EXPERIMENTS.overrides({"ranking": "big:a", "diversity": "weight:x"}, "diversity") == {}
    assert EXPERIMENTS.overrides({"ranking": CONTROL}, "diversity") == {}
    assert EXPERIMENTS.overrides({}, "diversity") == {}


def test_the_step_gives_every_request_an_arm_of_every_layer():
    batch = EXPERIMENTS(batch_of(USERS[:50], scene="home", now=0, n=1))
    for layer in ("ranking", "diversity"):
        assert batch.arms[layer] == tuple(EXPERIMENTS.arm_of(layer, user) for user in USERS[:50])
