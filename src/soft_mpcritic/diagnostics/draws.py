"""Which rows are looked at: no random number of the training is touched."""

import numpy as np

SEED = 20_000  # of all that is drawn here


def some(rng: np.random.Generator, among: int, count: int) -> np.ndarray:
    """`count` different numbers below `among`, or all where there are fewer."""
    return rng.permutation(among)[:count]


def filled(rows: np.ndarray, count: int) -> np.ndarray:
    """Zeros appended up to `count` rows, so that one compilation serves."""
    return np.concatenate([rows, np.zeros((count - len(rows), *rows.shape[1:]), rows.dtype)])
