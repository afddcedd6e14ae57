"""Settings: a wrong key or value is refused with its place and name, wherever it was written."""

import dataclasses
from pathlib import Path

import pytest
import yaml

from recsys.advisor.auto import Auto
from recsys.errors import SettingsError
from recsys.settings import Settings, load_experiments, load_rules, load_settings, model_of

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "configs"


@pytest.fixture
def file(tmp_path):
    def write(text: str, name: str = "my.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def load(path=None, environment=None, **overrides):
    return load_settings(path, environment=environment or {}, overrides=overrides.get("overrides"))


def test_nothing_given_is_the_defaults():
    assert load() == Settings()


# Unknown keys


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("workdri: x", "workdri"),
        ("online_store: {urll: redis://x}", "online_store.urll"),
        ("training: {two_tower: {model: {dimension_: 3}}}", "training.two_tower.model.dimension_"),
        ("training: {rankers: {home: {trees: 3}}}", "training.rankers.home.trees"),
        ("pipeline: {scenes: {email: {hide: true}}}", "pipeline.scenes.email.hide"),
    ],
)
def test_an_unknown_key_is_refused_with_file_and_key(file, text, key):
    path = file(text)
    with pytest.raises(SettingsError, match="unknown key") as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert repr(key) in str(caught.value)
    assert "keys here: " in str(caught.value)


def test_an_unknown_key_in_the_environment_is_said_of_the_variable(file):
    """It was said of the settings file, in which nobody would find it."""
    path = file("seed: 3")
    with pytest.raises(SettingsError) as caught:
        load(path, {"RECSYS__ONLINE_STORE__URLL": "redis://x"})
    assert "RECSYS__ONLINE_STORE__URLL: unknown key 'online_store.urll'" in str(caught.value)
    assert str(path) not in str(caught.value)


def test_an_unknown_key_on_the_command_line_is_said_of_it(file):
    with pytest.raises(SettingsError, match=r"command line: unknown key 'serving\.prot'"):
        load(file("seed: 3"), overrides={"serving.prot": 80})


# Wrong values


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("serving: {port: eighty}", "serving.port", "eighty"),
        ("seed: [1]", "seed", "[1]"),
        ("online_store: 5", "online_store", "5"),
        ("training: {rankers: {home: {rounds: many}}}", "training.rankers.home.rounds", "many"),
        ("pipeline: {diversity: {relevance_weight: 2}}", "pipeline.diversity", "0..1"),
        ("pipeline: {retrieval: {candidates: {eese: 5}}}", "pipeline.retrieval", "popularity"),
        ("training: {window_days: 0}", "training", "window_days"),
        ("training: {slices: 0}", "training", "slices"),
        ("training: {model: sasrek}", "training.model", "did you mean 'sasrec'"),
        ("training: {model: sasrec window=0}", "training.model", "window = 0"),
    ],
)
def test_a_wrong_value_is_refused_with_file_key_and_value(file, text, key, value):
    path = file(text)
    with pytest.raises(SettingsError) as caught:
        load(path)
    for part in (str(path), key, value):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_wrong_value_is_said_of_the_place_that_gave_it(file):
    path = file("seed: 3")
    with pytest.raises(SettingsError, match=r"^RECSYS__SERVING__PORT: serving\.port = 'x'"):
        load(path, {"RECSYS__SERVING__PORT": "x"})
    with pytest.raises(SettingsError, match=r"^RECSYS__PIPELINE__DIVERSITY__RELEVANCE_WEIGHT: .*0\.\.1"):
        load(path, {"RECSYS__PIPELINE__DIVERSITY__RELEVANCE_WEIGHT": "7"})
    with pytest.raises(SettingsError, match=r"^command line: serving\.port = 'x'"):
        load(path, {"RECSYS__SERVING__PORT": "80"}, overrides={"serving.port": "x"})
    with pytest.raises(SettingsError, match=r"my\.yaml: seed = 'x'"):
        load(file("seed: x"), {"RECSYS__SERVING__PORT": "80"}, overrides={"serving.host": "h"})


@pytest.mark.parametrize(
    ("text", "complaint"),
    [("a: [1", "is not YAML"), ("- a\n- b", "must be a mapping"), ("just words", "must be a mapping")],
)
def test_what_is_no_mapping_of_keys_is_refused(file, text, complaint):
    path = file(text)
    for read in (load, load_rules, load_experiments):
        with pytest.raises(SettingsError, match=complaint) as caught:
            read(path)
        assert str(path) in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    for read in (load, load_rules, load_experiments):
        with pytest.raises(SettingsError, match=r"can't read .*nothing\.yaml"):
            read(tmp_path / "nothing.yaml")


# Overrides


def test_the_environment_overrides_the_file_and_the_command_line_both(file):
    path = file("serving: {port: 1, host: here}\nseed: 4")
    environment = {"RECSYS__SERVING__PORT": "2", "RECSYS__SEED": "5", "PATH": "/bin", "recsys__seed": "9"}
    made = load(path, environment, overrides={"serving.port": 3})
    assert (made.serving.port, made.serving.host, made.seed) == (3, "here", 5)


def test_values_of_the_environment_are_yaml():
    made = load(
        None,
        {
            "RECSYS__ONLINE_STORE__URL": "redis://h:1/0",
            "RECSYS__SERVING__CLOCK": "null",
            "RECSYS__TRAINING__EVENT_TYPES": "[click, purchase]",
            "RECSYS__PIPELINE__SCENES__EMAIL": "{hide_consumed: true, ranker: home}",
        },
    )
    assert made.online_store.url == "redis://h:1/0"
    assert made.serving.clock is None
    assert made.training.event_types == ("click", "purchase")
    assert made.pipeline.scenes["email"].hide_consumed is True
    with pytest.raises(SettingsError, match=r"RECSYS__SEED='\[1' is not YAML"):
        load(None, {"RECSYS__SEED": "[1"})


def test_a_key_below_a_value_is_refused(file):
    with pytest.raises(SettingsError, match="RECSYS__SEED__MORE: 'seed' holds a value"):
        load(file("seed: 3"), {"RECSYS__SEED__MORE": "1"})


# Rules and experiments


def test_rules(file):
    rules = load_rules(file("rules:\n  - {name: a, remove: price > 1}\n  - {name: b, remove: 'TRUE'}"))
    assert [(rule.name, rule.remove) for rule in rules] == [("a", "price > 1"), ("b", "TRUE")]
    assert load_rules(file("")) == load_rules(file("rules:")) == ()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("rule: []", "unknown key 'rule'"),
        ("rules: [{name: a, remove: x, when: y}]", "unknown key '0.when'"),
        ("rules: [{name: a}]", "0.remove"),
        ("rules: [{name: a, remove: 3}]", "0.remove = 3"),
        ("rules: {name: a}", "valid"),
    ],
)
def test_a_wrong_rules_file_is_refused(file, text, complaint):
    path = file(text)
    with pytest.raises(SettingsError, match=complaint) as caught:
        load_rules(path)
    assert str(path) in str(caught.value)


EXPERIMENT = (
    "layers: {l: {experiments: {e: {traffic: %s, arms: {a: {share: %s}, b: {share: %s, set: {%s}}}}}}}"
)


def test_experiments(file):
    made = load_experiments(file(EXPERIMENT % (0.2, 0.5, 0.5, "diversity.relevance_weight: 0.7")))
    assert made.overrides({"l": "e:b"}, "diversity") == {"relevance_weight": 0.7}
    assert load_experiments(file("")).layers == {}


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ((0.2, 0.5, 0.6, ""), "sum to 1, got 1.1"),
        ((1.2, 0.5, 0.5, ""), "traffic must be in 0..1"),
        ((0.2, 1.5, -0.5, ""), "share of arm"),
        ((0.2, "half", 0.5, ""), "share = 'half'"),
        ((0.2, 0.5, 0.5, "diversity.relevence_weight: 1"), "unknown key 'relevence_weight'"),
        ((0.2, 0.5, 0.5, "diversity.relevance_weight: 7"), "0..1"),
        ((0.2, 0.5, 0.5, "rankign.pool: 7"), "'rankign.pool'"),
    ],
)
def test_a_wrong_experiments_file_is_refused_with_its_place(file, values, complaint):
    """A misspelled setting of an arm was found by the first user in it: every request of theirs failed."""
    path = file(EXPERIMENT % values)
    with pytest.raises(SettingsError) as caught:
        load_experiments(path)
    assert complaint in str(caught.value)
    assert str(path) in str(caught.value)


# Models


@pytest.mark.parametrize(
    "text",
    ["auto models=[ease,ials] most=2", "auto models=[ease, ials]  most=2", "auto most=2 models=[ ease,ials]"],
)
def test_the_list_of_a_model_may_have_blanks(text):
    assert model_of(text) == Auto(models=("ease", "ials"), most=2)


# What the repository ships


def test_every_file_in_configs_loads():
    settings = sorted(CONFIGS.glob("*.yaml"))
    assert settings
    for path in settings:
        load(path)
    for path in sorted((CONFIGS / "rules").glob("*.yaml")):
        assert load_rules(path)
    for path in sorted((CONFIGS / "experiments").glob("*.yaml")):
        assert load_experiments(path).layers
    for path in CONFIGS.rglob("*.yaml"):
        assert yaml.safe_load(path.read_text()), path


def test_the_shipped_settings_are_the_defaults_but_for_the_two_files_they_name():
    shipped = load(CONFIGS / "recsys.yaml")
    assert (shipped.rules, shipped.experiments) == (
        "configs/rules/default.yaml",
        "configs/experiments/default.yaml",  # what null means, see recsys.settings
    )
    assert dataclasses.replace(shipped, rules=None, experiments=None) == Settings()
