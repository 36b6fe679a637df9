"""The conformance kit: small models, checks for passes and adapters, and a scaffold for plugins. For
everyone's tests.

from attar.testing import conformance

@conformance(MyPass(option=1))
def test_my_pass(check): ...
"""

from attar.testing.adapter_checks import adapter_checks, check_adapter
from attar.testing.conformance import Check, check_pass, conformance, conformance_checks
from attar.testing.scaffold import new_plugin
from attar.testing.trial import NonConformance
from attar.testing.zoo import ZOO, ZooModel

__all__ = [
    "ZOO",
    "Check",
    "NonConformance",
    "ZooModel",
    "adapter_checks",
    "check_adapter",
    "check_pass",
    "conformance",
    "conformance_checks",
    "new_plugin",
]
