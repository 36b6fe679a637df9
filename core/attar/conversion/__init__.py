"""From the IR to the frameworks: what every writer of models needs, whatever it writes."""

from attar.conversion.prepare import prepare
from attar.conversion.view import NodeView

__all__ = ["NodeView", "prepare"]
