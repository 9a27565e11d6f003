import dataclasses
import json
import math

import jaxtyping
import pytest

from soft_mpcritic.config import (
    Config,
    ConfigError,
    CriticConfig,
    DynamicsConfig,
    ObjectiveConfig,
    PlannerConfig,
    TrainingConfig,
    from_dict,
    override,
    to_dict,
)
from soft_mpcritic.presets import PRESETS, preset

REFUSED = [
    (ObjectiveConfig, "prior", "cauchy"),
    (ObjectiveConfig, "variance", 0.0),
    (ObjectiveConfig, "variance", math.inf),
    (ObjectiveConfig, "temperature", 0.0),
    (ObjectiveConfig, "temperature", -1.0),
    (ObjectiveConfig, "temperature", math.nan),
    (ObjectiveConfig, "temperature", 1e-7),
    (ObjectiveConfig, "discount", 1.5),
    (ObjectiveConfig, "discount", -0.1),
    (ObjectiveConfig, "discount", math.nan),
    (ObjectiveConfig, "ratio_weights", "none"),
    (PlannerConfig, "scenarios", "per_batch"),
    (ObjectiveConfig, "risk", "variance"),
    (ObjectiveConfig, "risk_parameter", 0.0),
    (ObjectiveConfig, "end_value", math.nan),
    (ObjectiveConfig, "end_value", -math.inf),
    (ObjectiveConfig, "end_value", 1e7),
    (ObjectiveConfig, "caution", -0.1),
    (ObjectiveConfig, "caution", math.nan),
    (ObjectiveConfig, "caution", 1e4),
    (ObjectiveConfig, "goal", "guessed"),
    (PlannerConfig, "horizon", -1),
    (PlannerConfig, "trace", -0.1),
    (PlannerConfig, "trace", 1.1),
    (PlannerConfig, "num_samples", 0),
    (PlannerConfig, "iterations", 0),
    (PlannerConfig, "sampler", "halton"),
    (TrainingConfig, "episode_steps", -1),
    (PlannerConfig, "width", 0.0),
    (PlannerConfig, "width", 101.0),
    (PlannerConfig, "width", math.nan),
    (PlannerConfig, "step_size", 0.0),
    (PlannerConfig, "step_size", 1.1),
    (PlannerConfig, "step_size", math.nan),
    (PlannerConfig, "widths", 0),
    (PlannerConfig, "widths", 17),
    (DynamicsConfig, "members", 0),
    (DynamicsConfig, "width", 0),
    (DynamicsConfig, "depth", 0),
    (DynamicsConfig, "learning_rate", 0.0),
    (DynamicsConfig, "batch_size", 0),
    (CriticConfig, "heads", 0),
    (CriticConfig, "heads", 3),
    (CriticConfig, "width", 0),
    (CriticConfig, "depth", 0),
    (CriticConfig, "learning_rate", math.inf),
    (CriticConfig, "batch_size", 0),
    (CriticConfig, "loss", "huber"),
    (CriticConfig, "bins", 1),
    (CriticConfig, "imagined", -0.1),
    (CriticConfig, "imagined", 0.6),
    (CriticConfig, "imagined", math.nan),
    (CriticConfig, "support", (1.0, 1.0)),
    (CriticConfig, "support", (2.0, -2.0)),
    (CriticConfig, "unit", "metre"),
    (DynamicsConfig, "learning_rate", math.nan),
    (DynamicsConfig, "weight_decay", -0.1),
    (DynamicsConfig, "weight_decay", 1000.0),
    (DynamicsConfig, "average_step", 0.0),
    (DynamicsConfig, "average_step", 1.5),
    (CriticConfig, "target_step", 0.0),
    (CriticConfig, "target_step", 1.1),
    (CriticConfig, "target_every", 0),
    (CriticConfig, "control", "best"),
    (TrainingConfig, "seed_steps", -1),
    (TrainingConfig, "push", -0.1),
    (TrainingConfig, "push", 2.1),
    (TrainingConfig, "push_hold", 0.5),
    (TrainingConfig, "push_hold", math.inf),
    (TrainingConfig, "seed_hold", 0.5),
    (TrainingConfig, "seed_hold", math.inf),
    (TrainingConfig, "action_repeat", 0),
    (TrainingConfig, "action_repeat", 1001),
    (TrainingConfig, "observe_change", 1),
    (TrainingConfig, "updates_per_step", 0),
    (TrainingConfig, "pretrain_updates", -1),
    (TrainingConfig, "explore_trace", -0.1),
    (TrainingConfig, "explore_trace", 1.1),
    (TrainingConfig, "target_steps", -0.1),
    (TrainingConfig, "control_stretch", -1),
    (TrainingConfig, "target_steps", 1.5),
    (TrainingConfig, "capacity", 0),
    (TrainingConfig, "num_envs", 0),
    (TrainingConfig, "vectorization", "threads"),
    (TrainingConfig, "backend", "gpu"),
    (TrainingConfig, "matmul_precision", "low"),
    (TrainingConfig, "simulator", "webots"),
    (TrainingConfig, "explore", "greedy"),
    (TrainingConfig, "log_every", 0),
    (TrainingConfig, "evaluate_every", 0),
    (TrainingConfig, "evaluation_episodes", 0),
    (TrainingConfig, "checkpoint_every", 0),
    (TrainingConfig, "checkpoints_kept", 0),
    (TrainingConfig, "tracker", "wnb"),
    (TrainingConfig, "faults_tolerated", -1),
    (TrainingConfig, "step_timeout", -1.0),
    (TrainingConfig, "step_timeout", math.nan),
    (TrainingConfig, "skips_tolerated", 0),
    (TrainingConfig, "divergence", "pray"),
    (PlannerConfig, "horizon", 1001),
    (PlannerConfig, "horizon", 2.5),
    (PlannerConfig, "horizon", True),
    (PlannerConfig, "guided", 1),
    (ObjectiveConfig, "temperature", "hot"),
    (TrainingConfig, "capacity", 10**15),
    (TrainingConfig, "log_every", 10**15),
    (DynamicsConfig, "depth", 10**6),
    (CriticConfig, "learning_rate", 1e30),
    (CriticConfig, "scale", 0.0),
    (CriticConfig, "scale", math.inf),
]


def assert_names(error: ConfigError, name: str, value: object) -> None:
    """One line: NAME must RULE, got VALUE: REMEDY."""
    text = str(error)
    assert "\n" not in text
    assert text.startswith(f"{name} must ")
    _, _, rest = text.partition(f", got {value!r}: ")
    assert len(rest) > 3, text
    assert rest.endswith(".") and not rest.endswith("..")


@pytest.mark.parametrize(("section", "name", "value"), REFUSED, ids=lambda x: getattr(x, "__name__", str(x)))
def test_a_setting_that_cannot_work_is_refused_with_name_value_and_remedy(section, name, value, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as for users: its complaint would come first
    with pytest.raises(ConfigError) as caught:
        section(**{name: value})
    assert_names(caught.value, name, value)


@pytest.mark.parametrize(
    ("section", "settings"),
    [
        (ObjectiveConfig, {"discount": 0.0}),
        (ObjectiveConfig, {"discount": 1.0}),
        (ObjectiveConfig, {"temperature": 1e-6}),
        (ObjectiveConfig, {"risk": "cvar", "risk_parameter": 1.0}),
        (ObjectiveConfig, {"risk": "entropic", "risk_parameter": 3.0}),
        (PlannerConfig, {"horizon": 0, "num_samples": 1}),
        (CriticConfig, {"target_step": 1.0, "bins": 2}),
        (TrainingConfig, {"seed_steps": 0, "pretrain_updates": 0, "capacity": 1}),
    ],
)
def test_the_edge_of_what_works_is_accepted(section, settings):
    assert all(getattr(section(**settings), name) == value for name, value in settings.items())


def test_an_infinite_support_is_refused():
    with pytest.raises(ConfigError) as caught:
        CriticConfig(support=(-math.inf, math.inf))
    assert_names(caught.value, "support", (-math.inf, math.inf))


@pytest.mark.parametrize(
    "wrong", [5, 10**18, None, "x", [1], [1, 2, 3], [0, None], [1, 0], [0, math.nan], [0, 10**400]], ids=range(10)
)
def test_a_support_that_is_none_is_refused_in_one_line(wrong, monkeypatch):
    """As a crafted config.json may have it."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ConfigError, match=r"^support must be .*, got .*: try") as caught:
        override(Config(), {"critic.support": wrong})
    assert len(str(caught.value)) < 150


@pytest.mark.parametrize("wrong", [5, None, True, 1.5])
def test_a_part_that_is_no_name_is_refused(wrong, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ConfigError, match=r"^reward must be a name, got .*: use module:name, or nothing"):
        override(Config(), {"parts.reward": wrong})


def test_cvar_refuses_an_alpha_above_one():
    with pytest.raises(ConfigError) as caught:
        ObjectiveConfig(risk="cvar", risk_parameter=1.5)
    assert_names(caught.value, "risk_parameter", 1.5)


def test_capacity_below_the_number_of_environments_is_refused():
    with pytest.raises(ConfigError) as caught:
        TrainingConfig(capacity=3, num_envs=4)
    assert_names(caught.value, "capacity", 3)
    assert "num_envs = 4" in str(caught.value)


def test_no_discount_is_refused_when_the_critic_works_in_units_of_the_return():
    undiscounted = ObjectiveConfig(discount=1.0)
    with pytest.raises(ConfigError) as caught:
        Config(objective=undiscounted)
    assert_names(caught.value, "discount", 1)
    assert Config(objective=undiscounted, critic=CriticConfig(unit="reward")).objective.discount == 1


def test_every_setting_is_checked_or_cannot_be_wrong():
    checked = {(section, name) for section, name, _ in REFUSED}
    for section in (ObjectiveConfig, PlannerConfig, DynamicsConfig, CriticConfig, TrainingConfig):
        for setting in dataclasses.fields(section):
            assert setting.type is bool or (section, setting.name) in checked, f"{section.__name__}.{setting.name}"


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_json(name):
    config = preset(name)
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config


def test_from_dict_fills_in_defaults():
    assert from_dict({}) == Config()
    assert from_dict({"planner": {"horizon": 2}}).planner == PlannerConfig(horizon=2)


def test_run_folders_from_before_the_models_had_layer_norm_and_mean_are_read_as_they_were():
    """Or their checkpoints would not fit."""
    assert Config().dynamics.layer_norm
    before = {name: value for name, value in to_dict(Config())["dynamics"].items() if name not in NEW_IN_DYNAMICS}
    read = from_dict({"dynamics": before}).dynamics
    assert (read.layer_norm, read.average_step, read.weight_decay) == (False, 1.0, 0.0)


@pytest.mark.parametrize(
    ("values", "name", "wrong"),
    [
        ({"plannner": {}}, "settings", "plannner"),
        ({"planner": {"horizn": 3}}, "planner settings", "horizn"),
        ({"critic": {"b": 1, "a": 1}}, "critic settings", "a, b"),
    ],
)
def test_from_dict_refuses_names_that_no_setting_has(values, name, wrong):
    with pytest.raises(ConfigError, match=rf"^{name} must be among .*, got {wrong}: remove them\.$"):
        from_dict(values)


def test_from_dict_checks_values():
    with pytest.raises(ConfigError, match="horizon must be >= 0, got -1"):
        from_dict({"planner": {"horizon": -1}})


def test_override_replaces_exactly_what_it_names():
    changed = override(preset("paper"), {"planner.horizon": 2, "critic.support": (-1.0, 1.0)})
    assert (changed.planner.horizon, changed.critic.support) == (2, (-1.0, 1.0))
    assert override(changed, {"planner.horizon": 4, "critic.support": (-20.0, 20.0)}) == preset("paper")


@pytest.mark.parametrize("name", ["horizon", "planner", "planner.horizn", "planer.horizon", "planner.horizon.x", ""])
def test_override_refuses_unknown_names(name):
    with pytest.raises(ConfigError) as caught:
        override(Config(), {name: 1})
    assert f"got {name!r}: settings are objective.prior, " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_override_checks_values():
    with pytest.raises(ConfigError, match="num_samples must be >= 1, got 0"):
        override(Config(), {"target_planner.num_samples": 0})


def test_override_leaves_its_argument_alone():
    config = Config()
    override(config, {"planner.horizon": 1})
    assert config == Config()


def test_settings_cannot_be_changed_in_place():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().planner.horizon = 3  # pyright: ignore[reportAttributeAccessIssue]


def test_unknown_preset_is_refused():
    with pytest.raises(
        ConfigError, match=r"^preset must be one of default, locomotion, paper, paper-uniform, got 'papr': .+\.$"
    ):
        preset("papr")


NEW_IN_DYNAMICS = ("layer_norm", "average_step", "weight_decay")
PAPER = {
    "objective.prior": "gaussian",
    "objective.variance": 0.1,
    "objective.temperature": 0.1,
    "objective.discount": 0.99,
    "planner.scenarios": "per_step",
    "target_planner.scenarios": "per_step",
    "objective.terminations": False,
    "planner.horizon": 4,
    "planner.num_samples": 200,
    "planner.iterations": 1,
    "planner.sampler": "iid",
    "target_planner.horizon": 4,
    "target_planner.num_samples": 20,
    "target_planner.iterations": 1,
    "target_planner.sampler": "iid",
    "dynamics.members": 4,
    "dynamics.width": 256,
    "dynamics.depth": 2,
    "dynamics.learning_rate": 3e-4,
    "dynamics.batch_size": 32,
    "dynamics.own_batches": False,
    "dynamics.normalize": False,
    "critic.heads": 1,
    "critic.width": 256,
    "critic.depth": 2,
    "critic.layer_norm": False,
    "critic.learning_rate": 3e-4,
    "critic.batch_size": 32,
    "critic.loss": "mse",
    "critic.target_step": 0.005,
    "critic.target_every": 2,
    "training.seed_steps": 0,
    "training.pretrain_updates": 0,
    "training.updates_per_step": 1,
    "training.observe_position": True,
}
PAPER_UNIFORM = PAPER | {
    "objective.prior": "uniform",
    "objective.variance": 0.05,
    "objective.temperature": 0.15,
    "planner.num_samples": 600,
    "target_planner.num_samples": 60,
}


@pytest.mark.parametrize(("name", "facts"), [("paper", PAPER), ("paper-uniform", PAPER_UNIFORM)])
def test_presets_hold_the_papers_numbers(name, facts):
    values = to_dict(preset(name))
    held = {fact: values[fact.split(".")[0]][fact.split(".")[1]] for fact in facts}
    assert held == facts
