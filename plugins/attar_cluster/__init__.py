"""Weight sharing: few distinct values a tensor, so that a bundle needs a few bits a weight.

from attar_cluster import Weights

attar.compress(model, [Weights(values=32)], calibration=loader).save("model.attar")
"""

from collections.abc import Sequence

from attar.hooks import hookimpl
from attar.passes import Pass
from attar_cluster.weights import Weights

__all__ = ["Weights"]


@hookimpl
def attar_passes() -> Sequence[type[Pass]]:
    """The passes of this plugin."""
    return [Weights]
