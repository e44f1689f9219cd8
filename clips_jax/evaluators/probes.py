"""What frozen image embeddings hold: logistic regression (a linear probe) and nearest neighbours.

Legend: N training pictures, Q queries, E joint width, K classes.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.optimize
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from clips_jax.evaluators.bootstrap import interval_metrics

# L2 weights tried, from strong to weak, each starting where the one before ended.
REGULARISATIONS = tuple(10.0**exponent for exponent in range(1, -7, -1))
_MAX_STEPS = 500
_GRADIENT = 1e-5  # largest component where a fit is finished; losses are means, so this does not depend on N
_QUERIES = 256  # neighbours of so many at once
_SEED = 0


def _over_devices(*axes: str) -> NamedSharding:
    """Rows over this process's devices; () is whole on each.

    Every process holds all embeddings and computes the same, rather than meeting the others a thousand times.
    """
    return NamedSharding(Mesh(np.asarray(jax.local_devices()), ("rows",)), PartitionSpec(*axes))


def _on_devices(array: np.ndarray) -> jax.Array:
    """Rows spread over this process's devices; padded with zeros until they divide."""
    padding = -len(array) % jax.local_device_count()
    return jax.device_put(np.pad(array, ((0, padding),) + ((0, 0),) * (array.ndim - 1)), _over_devices("rows"))


def fit(
    features_NxE: np.ndarray, labels_N: np.ndarray, classes: int, regularisation: float, start: Any = None
) -> tuple[np.ndarray, np.ndarray]:
    """Multinomial logistic regression by L-BFGS: mean cross-entropy + regularisation / 2 * |weights|^2, to convergence.

    The loss and its gradient are computed over this process's devices, SciPy decides the steps.

    Args:
      features_NxE: float32.
      labels_N: int, 0 to `classes` - 1.
      start: parameters to begin with; None is zero.

    Returns:
      weights (E, K), which are regularised, and bias (K,), which is not; float32.
    """
    width = features_NxE.shape[1]
    arrays = [_on_devices(array) for array in (features_NxE, labels_N.astype(np.int32), np.ones(len(labels_N), "f"))]

    def split(flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        flat = flat.astype(np.float32)
        return flat[: width * classes].reshape(width, classes), flat[width * classes :]

    def value_and_gradient(flat: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = _value_and_gradient()(split(flat), *arrays, np.float32(regularisation))
        return float(value), np.concatenate([np.asarray(part, np.float64).reshape(-1) for part in gradient])

    first = (
        np.zeros(width * classes + classes) if start is None else np.concatenate([part.reshape(-1) for part in start])
    )
    options = {"maxiter": _MAX_STEPS, "gtol": _GRADIENT, "ftol": 0.0}
    return split(scipy.optimize.minimize(value_and_gradient, first, jac=True, method="L-BFGS-B", options=options).x)


@functools.cache
def _value_and_gradient() -> Any:
    return jax.jit(jax.value_and_grad(_loss), out_shardings=_over_devices())


def _loss(
    params: Any, features_NxE: jax.Array, labels_N: jax.Array, weight_N: jax.Array, regularisation: jax.Array
) -> jax.Array:
    weights_ExK, bias_K = params
    logits_NxK = jnp.matmul(features_NxE, weights_ExK, precision="highest") + bias_K[None]
    losses_N = optax.softmax_cross_entropy_with_integer_labels(logits_NxK, labels_N)
    return (losses_N * weight_N).sum() / weight_N.sum() + regularisation / 2 * (weights_ExK**2).sum()


def _scaled(embeddings: np.ndarray) -> np.ndarray:
    """Rows of length 1 -> mean square 1, so that one range of regularisations fits every width."""
    return embeddings * np.float32(embeddings.shape[1] ** 0.5)


def linear_probe(
    train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray], classes: int, held_out: float = 0.1
) -> dict[str, float]:
    """Top-1 in percent of logistic regression; the L2 weight is the best on a held-out part of the training pictures.

    Args:
      train, test: embeddings float32 (N, E), rows of length 1, and labels int (N,). Training pictures that cannot be
        read (NaN) are left out, test pictures that cannot be read are wrong.
      classes: K.
      held_out: share of the training pictures, drawn by a fixed seed; the final fit uses all of them.

    Returns:
      "top1", "top1/low", "top1/high", "regularisation", "held_out_top1", "n_images", "n_train", "n_classes".
    """
    features, labels = _readable(*train)
    features = _scaled(features)
    order = np.random.default_rng(_SEED).permutation(len(features))
    cut = max(1, round(held_out * len(features)))
    chosen, fitted = order[:cut], order[cut:]
    if not len(fitted):
        raise ValueError(f"{len(features)} training pictures are too few for a linear probe.")
    params, scores = None, []
    for regularisation in REGULARISATIONS:
        params = fit(features[fitted], labels[fitted], classes, regularisation, params)
        scores.append(float(np.mean(_predict(params, features[chosen]) == labels[chosen])))
    best = int(np.argmax(scores))  # the strongest of equals
    params = fit(features, labels, classes, REGULARISATIONS[best])
    right = _predict(params, _scaled(test[0])) == test[1]
    found = _top1(right & ~np.isnan(test[0]).any(axis=1))
    return found | {
        "regularisation": REGULARISATIONS[best],
        "held_out_top1": 100 * scores[best],
        "n_images": len(test[0]),
        "n_train": len(features),
        "n_classes": classes,
    }


def _predict(params: tuple[np.ndarray, np.ndarray], features: np.ndarray) -> np.ndarray:
    return np.argmax(features @ params[0] + params[1], axis=1)


def nearest_neighbours(
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    classes: int,
    k: int = 20,
    temperature: float = 0.07,
) -> dict[str, float]:
    """Top-1 in percent of the class with the most votes among the k nearest training pictures, each weighing
    exp(cosine / temperature).

    Args and left-out pictures as `linear_probe`.

    Returns:
      "top1", "top1/low", "top1/high", "k", "n_images", "n_train", "n_classes".
    """
    features, labels = _readable(*train)
    k = min(k, len(features))
    held = _on_devices(features)
    real = _on_devices(np.ones(len(features), bool))
    vote = functools.partial(_votes, k=k, temperature=temperature, classes=classes)
    votes = jax.jit(vote, out_shardings=_over_devices())
    labels_on = _on_devices(labels.astype(np.int32))
    right = np.zeros(len(test[0]), bool)
    for start in range(0, len(test[0]), _QUERIES):
        rows = test[0][start : start + _QUERIES]
        padded = np.zeros((_QUERIES, rows.shape[1]), np.float32)
        padded[: len(rows)] = np.nan_to_num(rows)
        predicted = np.asarray(votes(padded, held, labels_on, real))[: len(rows)]
        right[start : start + len(rows)] = predicted == test[1][start : start + len(rows)]
    right &= ~np.isnan(test[0]).any(axis=1)
    counts = {"k": k, "n_images": len(test[0]), "n_train": len(features), "n_classes": classes}
    return _top1(right) | counts


def _votes(
    queries_QxE: jax.Array,
    features_NxE: jax.Array,
    labels_N: jax.Array,
    real_N: jax.Array,
    k: int,
    temperature: float,
    classes: int,
) -> jax.Array:
    scores_QxN = jnp.matmul(queries_QxE, features_NxE.T, precision="highest")
    nearest_Qxk, index_Qxk = jax.lax.top_k(jnp.where(real_N[None], scores_QxN, -jnp.inf), k)
    weight_Qxk = jnp.exp((nearest_Qxk - nearest_Qxk[:, :1]) / temperature)  # the largest is 1: no overflow
    return (jax.nn.one_hot(labels_N[index_Qxk], classes) * weight_Qxk[:, :, None]).sum(axis=1).argmax(axis=1)


def _readable(embeddings: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    kept = ~np.isnan(embeddings).any(axis=1)
    return np.asarray(embeddings[kept], np.float32), labels[kept]


def _top1(right: np.ndarray) -> dict[str, float]:
    one = np.ones(len(right))
    return {"top1": 100 * float(np.mean(right))} | interval_metrics({"top1": (right * one, one)})
