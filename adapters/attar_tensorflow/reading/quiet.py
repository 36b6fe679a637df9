"""TensorFlow without its chatter: what it and its C++ parts write to stderr, warn and log."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator

from attar.frameworks import muted


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Nothing is printed, warned or logged in the block; every setting is put back after it."""
    level, flag = logging.root.manager.disable, os.environ.get("TF_CPP_MIN_LOG_LEVEL")
    logging.disable(logging.CRITICAL)
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    try:
        with warnings.catch_warnings(), muted(2):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
        if flag is None:
            os.environ.pop("TF_CPP_MIN_LOG_LEVEL", None)
        else:
            os.environ["TF_CPP_MIN_LOG_LEVEL"] = flag
