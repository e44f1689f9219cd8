"""Plain NumPy float64 versions of the losses: slow, obvious, independent of the package."""

import numpy as np


def log_softmax(logits: np.ndarray, axis: int) -> np.ndarray:
    shifted = logits - logits.max(axis=axis, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))


def softmax_loss(image: np.ndarray, text: np.ndarray, scale: float) -> float:
    image, text = image.astype(np.float64), text.astype(np.float64)
    logits = scale * image @ text.T
    by_image = -np.mean(np.diag(log_softmax(logits, axis=1)))
    by_text = -np.mean(np.diag(log_softmax(logits, axis=0)))
    return (by_image + by_text) / 2


def softmax_loss_gradients(image: np.ndarray, text: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray, float]:
    """d loss / d (image, text, scale), written out: dL/dz = (softmax_rows + softmax_columns - 2 I) / 2B."""
    image, text = image.astype(np.float64), text.astype(np.float64)
    logits = scale * image @ text.T
    batch = len(image)
    by_logit = (np.exp(log_softmax(logits, 1)) + np.exp(log_softmax(logits, 0)) - 2 * np.eye(batch)) / (2 * batch)
    return scale * by_logit @ text, scale * by_logit.T @ image, float((by_logit * (image @ text.T)).sum())


def sigmoid_loss(image: np.ndarray, text: np.ndarray, scale: float, bias: float) -> float:
    image, text = image.astype(np.float64), text.astype(np.float64)
    logits = scale * image @ text.T + bias
    sign = 2 * np.eye(len(image)) - 1
    return float(np.log1p(np.exp(-sign * logits)).sum() / len(image))


def sigmoid_loss_gradients(
    image: np.ndarray, text: np.ndarray, scale: float, bias: float
) -> tuple[np.ndarray, np.ndarray, float, float]:
    image, text = image.astype(np.float64), text.astype(np.float64)
    logits = scale * image @ text.T + bias
    sign = 2 * np.eye(len(image)) - 1
    by_logit = -sign / (1 + np.exp(sign * logits)) / len(image)
    return (
        scale * by_logit @ text,
        scale * by_logit.T @ image,
        float((by_logit * (image @ text.T)).sum()),
        float(by_logit.sum()),
    )


def caption_loss(hidden: np.ndarray, head: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> float:
    losses = -np.take_along_axis(
        log_softmax(hidden.astype(np.float64) @ head.astype(np.float64), -1), targets[..., None], -1
    )
    return float((losses[..., 0] * weights).sum() / weights.sum())


def caption_loss_gradients(
    hidden: np.ndarray, head: np.ndarray, targets: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    hidden, head = hidden.astype(np.float64), head.astype(np.float64)
    by_logit = np.exp(log_softmax(hidden @ head, -1)) - np.eye(head.shape[1])[targets]
    by_logit *= weights[..., None] / weights.sum()
    return by_logit @ head.T, np.einsum("ctd,ctv->dv", hidden, by_logit)


def contrastive_loss(
    image: np.ndarray, texts: np.ndarray, scale: float, bias: float, kind: str, weights: tuple[float, ...]
) -> tuple[list[float], tuple[np.ndarray, np.ndarray, float, float]]:
    """Each view's loss; gradients of their weighted sum by image (B, E), texts (B, V, E), scale and bias."""
    values, by_view = [], []
    for view, weight in enumerate(weights):
        text = texts[:, view]
        if kind == "softmax":
            values.append(softmax_loss(image, text, scale))
            gradients = (*softmax_loss_gradients(image, text, scale), 0.0)
        else:
            values.append(sigmoid_loss(image, text, scale, bias))
            gradients = sigmoid_loss_gradients(image, text, scale, bias)
        by_view.append([weight * gradient for gradient in gradients])
    by_image, by_text, by_scale, by_bias = zip(*by_view, strict=True)
    return values, (sum(by_image), np.stack(by_text, axis=1), sum(by_scale), sum(by_bias))
