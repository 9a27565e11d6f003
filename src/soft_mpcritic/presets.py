"""Settings that belong together, by name."""

import dataclasses

from soft_mpcritic.config import (
    Config,
    CriticConfig,
    DynamicsConfig,
    ObjectiveConfig,
    PlannerConfig,
    TrainingConfig,
    check,
)


def _paper() -> Config:
    return Config(
        objective=ObjectiveConfig(terminations=False),
        planner=PlannerConfig(num_samples=200, sampler="iid", keep_nominal=False),
        target_planner=PlannerConfig(num_samples=20, sampler="iid", keep_nominal=False),
        dynamics=DynamicsConfig(learning_rate=3e-4, batch_size=32, own_batches=False, normalize=False),
        critic=CriticConfig(heads=1, layer_norm=False, batch_size=32, unit="reward", target_step=0.005, target_every=2),
        training=TrainingConfig(seed_steps=0, pretrain_updates=0, explore="mean", observe_position=True),
    )


def _paper_uniform() -> Config:
    paper = _paper()
    return dataclasses.replace(
        paper,
        objective=dataclasses.replace(paper.objective, prior="uniform", variance=0.05, temperature=0.15),
        planner=dataclasses.replace(paper.planner, num_samples=600),
        target_planner=dataclasses.replace(paper.target_planner, num_samples=60),
    )


def _locomotion() -> Config:
    """For bodies that run: a uniform prior, as strong actions pay; a sharp search online, a blunt one for targets.

    The online search asks all members, as it would find the errors of any single one, and Q at every step of a plan,
    not at its end alone. Targets draw fresh, wide samples only: the best plan that was ever kept, or the best of narrow
    ones, is the one that the critic overrates most. They move their plans by quarter steps, so that visits with few
    samples add up. Control asks the slow critic, as a sharp search finds what the newest one's last updates got wrong.
    Every other stretch of training acts as control does, so that it is learned where control leads; in the others, half
    of the steps act as targets suppose, so that the data hold what they imagine. Where only plans go, the models' own
    steps teach the critic. Ends are feared a little before they are reached, as a fast gait leans right up to them.
    Training starts anew every 200 steps: who has tipped over would else learn to crawl first.
    """
    return Config(
        objective=ObjectiveConfig(prior="uniform", temperature=0.05, caution=0.1),
        planner=PlannerConfig(num_samples=32, iterations=2, widths=4, guided=True, scenarios="all_members", trace=0.7),
        target_planner=PlannerConfig(num_samples=8, keep_nominal=False, step_size=0.25),
        dynamics=DynamicsConfig(width=128),
        critic=CriticConfig(width=128, batch_size=256, target_step=0.005, imagined=0.1, control="slow"),
        training=TrainingConfig(
            seed_steps=1000, target_steps=0.5, control_stretch=500, episode_steps=200, wrap_angles=True
        ),
    )


PRESETS = {"default": Config, "locomotion": _locomotion, "paper": _paper, "paper-uniform": _paper_uniform}


def preset(name: str) -> Config:
    """A preset by its name; raises `ConfigError` for an unknown one."""
    check(name in PRESETS, "preset", f"be one of {', '.join(PRESETS)}", repr(name), "choose one of these")
    return PRESETS[name]()
