"""BLEU-4 and CIDEr of written captions against references, by libraries that are installed when they are wanted."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from clips_jax.config import ConfigError
from clips_jax.evaluators.bootstrap import RESAMPLES, interval_metrics

INSTALL = "pip install sacrebleu==2.6.0 pycocoevalcap==1.2"

_WORD = re.compile(r"\w+(?:['\u2019]\w+)*")


def words(text: str) -> str:
    """Words in lower case without punctuation, one space between.

    The COCO evaluation takes Stanford's PTB tokenizer, which needs Java, and drops punctuation too; it differs in
    contractions ("don't" is two words there), so scores differ a little.
    """
    return " ".join(_WORD.findall(text.lower()))


def bleu_and_cider(captions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Scores of one caption per picture.

    Args:
      captions: written.
      references: by picture at least one.

    Returns:
      "BLEU-4" (0 to 100; sacreBLEU on `words`) and "CIDEr" (times 100; CIDEr-D, document frequencies from these
      references), each with "/low" and "/high", the bounds of its 95 % bootstrap interval over pictures.

    Raises:
      ConfigError: the libraries are not installed; names the command.
    """
    try:
        from pycocoevalcap.cider.cider import Cider
        from sacrebleu.metrics.bleu import BLEU
    except ImportError as error:
        raise ConfigError(f"BLEU and CIDEr need two more packages: {INSTALL} ({error})") from error
    written = [words(caption) for caption in captions]
    wanted = [[words(reference) for reference in some] for some in references]
    most = max(len(some) for some in wanted)
    streams: Any = [[some[i] if i < len(some) else None for some in wanted] for i in range(most)]
    score = BLEU(tokenize="none", force=True).corpus_score(written, streams, n_bootstrap=RESAMPLES)
    results = {"BLEU-4": score.score}
    if len(written) > 1:  # sacreBLEU resamples with its own fixed seed
        results |= {"BLEU-4/low": score._mean - score._ci, "BLEU-4/high": score._mean + score._ci}
    by_number = ({i: [text] for i, text in enumerate(written)}, dict(enumerate(wanted)))
    mean, each = Cider().compute_score(by_number[1], by_number[0])
    each = np.asarray(each, np.float64)
    return results | {"CIDEr": 100 * float(mean)} | interval_metrics({"CIDEr": (each, np.ones(len(each)))})
