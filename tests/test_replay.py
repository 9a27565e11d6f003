import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from soft_mpcritic.replay import Replay
from soft_mpcritic.types import Transition

OBS, ACTION, SLOTS = 3, 2, 4


def coded(ids: np.ndarray, kind: int, *shape: int) -> jax.Array:
    """Numbers that tell of which transition, which field and which component they are; exact in float32."""
    components = np.arange(np.prod(shape, dtype=int)).reshape(shape) / 64
    columns = np.asarray(ids, float).reshape(-1, *[1] * len(shape))
    return jnp.asarray(100 * columns + kind + components, jnp.float32)


def transitions(ids: np.ndarray) -> Transition:
    terminated = jnp.asarray(np.asarray(ids) % 3 == 0, jnp.float32)
    return Transition(coded(ids, 1, OBS), coded(ids, 2, ACTION), coded(ids, 3), coded(ids, 4, OBS), terminated)


def plans(ids: np.ndarray, kind: int = 5) -> jax.Array:
    return coded(ids, kind, SLOTS, ACTION)


def now(updates: int) -> jax.Array:
    return jnp.array(updates, jnp.int32)


def filled(count: int, capacity: int, envs: int = 1) -> Replay:
    """Transitions 0 .. count - 1, `envs` at a time; update count 10 i at the i-th addition."""
    replay, add = Replay.init(capacity, OBS, ACTION, SLOTS), jax.jit(Replay.add)
    for step in range(count // envs):
        ids = np.arange(step * envs, (step + 1) * envs)
        replay = add(replay, transitions(ids), plans(ids), now(10 * step))
    return replay


def assert_holds(replay: Replay, rows: np.ndarray, ids: np.ndarray) -> None:
    chosen = jnp.asarray(rows, jnp.int32)
    jax.tree.map(np.testing.assert_array_equal, replay.take(chosen), transitions(ids))
    np.testing.assert_array_equal(replay.take_plans(chosen)[0], plans(ids))


@pytest.mark.parametrize("count", [0, 1, 5, 7, 8, 20])
def test_size_and_position_follow_the_ring(count):
    replay = filled(count, capacity=7)
    assert replay.capacity == 7
    assert replay.size == min(count, 7)
    assert replay.position == count % 7


def test_a_step_that_is_not_to_be_kept_changes_nothing():
    """Also in a full ring, where it would take the place of the oldest."""
    add = jax.jit(Replay.add)
    for count in (5, 20):
        replay = filled(count, capacity=7)
        left = add(replay, transitions(np.array([99])), plans(np.array([99])), now(99), jnp.array(False))
        jax.tree.map(np.testing.assert_array_equal, left, replay)
        kept = add(replay, transitions(np.array([99])), plans(np.array([99])), now(99), jnp.array(True))
        assert_holds(kept, np.array([count % 7]), np.array([99]))


def test_what_was_added_is_taken_whole():
    replay = filled(5, capacity=7)
    assert_holds(replay, np.array([3, 0, 4, 3]), np.array([3, 0, 4, 3]))
    np.testing.assert_array_equal(replay.take_plans(jnp.array([3, 0]))[1], [30, 0])


def test_the_oldest_is_overwritten():
    replay = filled(10, capacity=7)
    assert_holds(replay, np.arange(7), np.array([7, 8, 9, 3, 4, 5, 6]))
    np.testing.assert_array_equal(replay.take_plans(jnp.arange(7))[1], [70, 80, 90, 30, 40, 50, 60])


def test_several_environments_are_added_across_the_end_of_the_ring():
    replay = filled(9, capacity=7, envs=3)
    assert (replay.size, replay.position) == (7, 2)
    assert_holds(replay, np.arange(7), np.array([7, 8, 2, 3, 4, 5, 6]))
    np.testing.assert_array_equal(replay.take_plans(jnp.arange(7))[1], [20, 20, 0, 10, 10, 10, 20])


def test_as_many_environments_as_slots_fill_the_ring():
    replay = filled(8, capacity=4, envs=4)
    assert (replay.size, replay.position) == (4, 0)
    assert_holds(replay, np.arange(4), np.array([4, 5, 6, 7]))


@pytest.mark.parametrize("rows", [[2], [5, 0, 3]], ids=str)
def test_written_plans_replace_those_of_their_rows_and_nothing_else(rows):
    before = filled(6, capacity=7)
    after = before.write_plans(jnp.array(rows), plans(np.array(rows), kind=6), now(777))
    others = jnp.array([row for row in range(7) if row not in rows])
    kept, stamps = after.take_plans(jnp.array(rows))
    np.testing.assert_array_equal(kept, plans(np.array(rows), kind=6))
    np.testing.assert_array_equal(stamps, [777] * len(rows))
    np.testing.assert_array_equal(after.plans[others], before.plans[others])
    np.testing.assert_array_equal(after.records, before.records)
    assert (after.size, after.position) == (before.size, before.position)


def test_an_overwritten_transition_loses_its_refined_plan():
    replay = filled(7, capacity=7).write_plans(jnp.array([0]), plans(np.array([0]), kind=6), now(777))
    replay = replay.add(transitions(np.array([7])), plans(np.array([7])), now(778))
    assert_holds(replay, np.array([0]), np.array([7]))
    assert replay.take_plans(jnp.array([0]))[1] == 778


@pytest.mark.parametrize(("count", "filled_rows"), [(5, 5), (20, 12)])
def test_draws_are_uniform_over_the_rows_that_are_filled(count, filled_rows):
    rows = np.asarray(filled(count, capacity=12).sample_rows(jax.random.key(0), 20_000))
    counts = np.bincount(rows, minlength=filled_rows)
    assert len(counts) == filled_rows
    assert stats.chisquare(counts).pvalue > 0.001


def test_draws_follow_from_the_key():
    replay = filled(12, capacity=12)
    draws = [replay.sample_rows(jax.random.key(seed), 50) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2])


CAPACITY = 100_000


def step(replay: Replay, key: jax.Array, new: Transition, start: jax.Array, time: jax.Array, keep=None):
    """What one environment step does with its replay."""
    replay = replay.add(new, start, time, keep)
    rows = replay.sample_rows(key, 32)
    batch, (kept, planned_at) = replay.take(rows), replay.take_plans(rows)
    replay = replay.write_plans(rows, 0.5 * kept, time)
    return replay, batch, planned_at


def step_arguments(envs: int):
    ids = np.arange(envs)
    replay = Replay.init(CAPACITY, OBS, ACTION, SLOTS)
    return replay, jax.random.key(0), transitions(ids), plans(ids), now(1)


def copies(envs: int, keep: jax.Array | None = None, **options) -> list[str]:
    """Whole buffers that the compiled step copies."""
    program = jax.jit(step, **options).lower(*step_arguments(envs), keep).compile().as_text()
    assert program is not None
    return re.findall(rf"f32\[{CAPACITY},\d+\]\S* copy(?:-start)?\(", program)


@pytest.mark.usefixtures("optimized")
@pytest.mark.parametrize("envs", [1, 3])
def test_a_step_copies_no_buffer_that_is_donated(envs):
    assert len(copies(envs)) == 2  # records and plans, where the caller keeps the old ones
    assert copies(envs, donate_argnums=0) == copies(envs, jnp.array(True), donate_argnums=0) == []


@pytest.mark.parametrize("envs", [1, 3])
def test_a_donated_replay_stays_where_it_is_in_memory(envs):
    replay, *rest = step_arguments(envs)
    places = (replay.records.unsafe_buffer_pointer(), replay.plans.unsafe_buffer_pointer())
    replay, *_ = jax.jit(step, donate_argnums=0)(replay, *rest)
    assert (replay.records.unsafe_buffer_pointer(), replay.plans.unsafe_buffer_pointer()) == places
