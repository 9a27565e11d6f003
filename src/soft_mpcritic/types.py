"""What the layers hand to each other: records, results and the protocols that users may implement.

Shape letters, used in every docstring and annotation of this library:

    B planning problems    K samples    H horizon    T = H + 1 action slots (the last one feeds Q)
    S observation size     A action size    N ensemble members    M critic heads
    C replay capacity      E environments   R rows of any flattened batch
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

AnyArray = Array | np.ndarray  # on the device or on the host
Trace = float | Float[Array, ""]  # lambda of a return


class Transition(NamedTuple):
    """One step of experience per row. `terminated` is the task's own end, never a time limit."""

    obs: Float[Array, "R S"]
    action: Float[Array, "R A"]  # in the library's box [-1, 1]
    reward: Float[Array, " R"]
    next_obs: Float[Array, "R S"]
    terminated: Float[Array, " R"]  # 0 or 1


class Experience(NamedTuple):
    """What E environments answered to one vector of actions.

    `next_obs` is where the step led, even when the episode ended there; `start_obs` is where the next action
    is taken: the same, or the first observation of a new episode where `done`.
    """

    reward: Float[AnyArray, " E"]
    next_obs: Float[AnyArray, "E S"]
    terminated: Bool[AnyArray, " E"]
    done: Bool[AnyArray, " E"]  # terminated or truncated
    start_obs: Float[AnyArray, "E S"]


class Episode(NamedTuple):
    """One evaluation episode."""

    seed: int  # of the environment's reset
    ret: float
    length: int


class Trajectory(NamedTuple):
    """One evaluation episode in full: L steps, on the host."""

    episode: Episode
    obs: Float[np.ndarray, "L S"]
    action: Float[np.ndarray, "L A"]  # in the library's box [-1, 1]
    reward: Float[np.ndarray, " L"]
    next_obs: Float[np.ndarray, "L S"]
    soft_value: Float[np.ndarray, " L"]  # of the online solve that chose the action, reward units
    terminated: bool  # by the task's own end; cut by a time limit otherwise


class PlanStats(NamedTuple):
    """How well a solve went, per problem."""

    effective_samples: Float[Array, " B"]  # in [1, K]; 0 when every sample was invalid
    best_return: Float[Array, " B"]
    mean_return: Float[Array, " B"]  # over valid samples
    clip_fraction: Float[Array, " B"]  # of sampled action components outside the box
    invalid_fraction: Float[Array, " B"]  # of samples whose return was NaN or infinite


class PlanResult(NamedTuple):
    """A solved batch of planning problems."""

    plan: Float[Array, "B T A"]  # weighted mean, inside the box
    sample: Float[Array, "B T A"]  # one sequence drawn from the soft policy, inside the box
    value: Float[Array, " B"]  # soft value, reward units; -inf when every sample was invalid
    stats: PlanStats


class StepOutcome(NamedTuple):
    """What a model says of one step. `continuation` is the probability that the episode goes on."""

    next_obs: Float[Array, "R S"]
    reward: Float[Array, " R"]
    continuation: Float[Array, " R"]


@runtime_checkable
class ReturnsFn(Protocol):
    """All that the planner knows of the world: action sequences in, returns out."""

    def __call__(self, actions: Float[Array, "K B T A"], /) -> Float[Array, "K B"]: ...


@runtime_checkable
class StepFn(Protocol):
    """One model step by one ensemble member; `member` is one slice of a pytree with leading axis N."""

    def __call__(self, member: Any, obs: Float[Array, "R S"], action: Float[Array, "R A"], /) -> StepOutcome: ...


@runtime_checkable
class Dynamics(Protocol):
    """Where a step leads, as far as is known: equations, in the task's own units of observation and action."""

    def __call__(self, obs: Float[Array, "R S"], action: Float[Array, "R A"], /) -> Float[Array, "R S"]: ...


@runtime_checkable
class TerminalValue(Protocol):
    """Q(s_H, a_H): what everything after the horizon is worth, in reward units."""

    def __call__(self, obs: Float[Array, "R S"], action: Float[Array, "R A"], /) -> Float[Array, " R"]: ...


@runtime_checkable
class Reward(Protocol):
    """Known reward of a task, in its own units of observation and action."""

    def __call__(
        self, obs: Float[Array, "R S"], action: Float[Array, "R A"], next_obs: Float[Array, "R S"], /
    ) -> Float[Array, " R"]: ...


@runtime_checkable
class Termination(Protocol):
    """Known probability that the step ends the episode, in [0, 1]."""

    def __call__(
        self, obs: Float[Array, "R S"], action: Float[Array, "R A"], next_obs: Float[Array, "R S"], /
    ) -> Float[Array, " R"]: ...


@runtime_checkable
class Prior(Protocol):
    """Action prior p and the proposal q around a plan from which sequences are drawn.

    `width` narrows the proposal, in units of its deviation sqrt(`variance`).
    """

    @property
    def variance(self) -> float:
        """Of the proposal of width 1, per action component."""
        ...

    def propose(
        self, points: Float[Array, "K B T A"], plan: Float[Array, "B T A"], width: float = 1.0, /
    ) -> Float[Array, "K B T A"]:
        """Maps points of (-1, 1), uniform per component, to actions distributed as q."""
        ...

    def log_ratio(
        self, actions: Float[Array, "K B T A"], plan: Float[Array, "B T A"], width: float = 1.0, /
    ) -> Float[Array, "K B T"]:
        """log q(a_t) - log p(a_t), summed over the action's components."""
        ...


@runtime_checkable
class Sampler(Protocol):
    """K points per problem in (-1, 1)^(T A), each component uniform; how they depend on each other is its art."""

    def __call__(self, key: PRNGKeyArray, shape: tuple[int, ...], /) -> Float[Array, "K B T A"]: ...


@runtime_checkable
class RiskMeasure(Protocol):
    """Reduces the returns of one action sequence under N models to one number."""

    def __call__(self, returns: Float[Array, "N K B"], /) -> Float[Array, "K B"]: ...
