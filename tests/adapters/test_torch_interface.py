"""Inputs and outputs of any nesting, dynamic axes, and what torch.export refuses."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
nn, functional = torch.nn, torch.nn.functional

from torch_nets import ADAPTER, at, parity, shapes  # noqa: E402

from attar.errors import ConversionError, InputError  # noqa: E402
from attar.runtime import OnnxRuntime  # noqa: E402


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


class Nested(nn.Module):
    def forward(self, batch, scale=2.0, *, flip=False, extra=None):
        a, (b, c) = batch["a"], batch["bc"]
        y = a * scale + b - c
        return {"y": -y if flip else y, "pair": (a + 1, b), "n": 3, "none": extra}


def test_nested_inputs_and_outputs_with_constants() -> None:
    parts = [torch.randn(2, 3) for _ in range(3)]
    loaded = ADAPTER.load(
        Nested(), inputs={"batch": {"a": parts[0], "bc": (parts[1], parts[2])}, "flip": True}
    )
    assert list(shapes(loaded)) == ["batch_a", "batch_bc_0", "batch_bc_1"]
    assert [v.name for v in loaded.model.graph.outputs] == ["y", "pair_0", "pair_1"]
    assert any("n (int)" in n for n in loaded.notes)
    parity(loaded)
    y = OnnxRuntime().open(loaded.model).run(loaded.example)[0]
    np.testing.assert_allclose(y, -(parts[0] * 2 + parts[1] - parts[2]).numpy(), rtol=1e-6)


def test_dataclass_results_and_a_result_named_like_an_input() -> None:
    @dataclasses.dataclass
    class Result:
        x: Any
        total: Any

    class Net(nn.Module):
        def forward(self, x):
            return Result(x=x, total=x.sum(-1))

    loaded = ADAPTER.load(Net(), inputs=torch.randn(2, 3))
    assert [v.name for v in loaded.model.graph.outputs] == ["x_out", "total"]
    parity(loaded)


@pytest.mark.parametrize(
    "example",
    [np.zeros((1, 3)), (torch.zeros(1, 3),), [np.zeros((1, 3), "f4")], {"input": torch.zeros(1, 3)}],
)
def test_forms_of_an_example(example: Any) -> None:
    parity(ADAPTER.load(nn.Linear(3, 4), inputs=example))


def test_example_keeps_its_own_size() -> None:
    loaded = ADAPTER.load(nn.Linear(3, 4), inputs=torch.zeros(1, 3))
    assert loaded.example["input"].shape == (1, 3)
    assert shapes(loaded) == {"input": ["batch", 3]}


def test_missing_and_wrong_inputs_are_explained() -> None:
    with pytest.raises(InputError, match=r"example inputs.*\n.*inputs=") as caught:
        ADAPTER.load(nn.Linear(3, 4))
    assert "inputs=" in str(caught.value)
    with pytest.raises(InputError, match=r"Linear does not run.*\[2, 5\].*shapes cannot be multiplied"):
        ADAPTER.load(nn.Linear(3, 4), inputs=torch.zeros(2, 5))
    with pytest.raises(InputError, match=r"do not fit Linear\.forward"):
        ADAPTER.load(nn.Linear(3, 4), inputs={"wrong": torch.zeros(2, 3), "input": torch.zeros(2, 3)})
    with pytest.raises(InputError, match="no tensor"):
        ADAPTER.load(nn.Linear(3, 4), inputs=3)
    with pytest.raises(InputError, match="cannot become a tensor"):
        ADAPTER.load(nn.Linear(3, 4), inputs=np.array(["a"]))
    with pytest.raises(InputError, match="no option 'dynamik'"):
        ADAPTER.load(nn.Linear(3, 4), inputs=torch.zeros(2, 3), dynamik=None)


# -- dynamic axes ----------------------------------------------------------------------------------


def test_declared_axes() -> None:
    net = nn.Conv2d(3, 4, 3)
    loaded = ADAPTER.load(
        net, inputs=torch.randn(1, 3, 16, 16), dynamic={"input": {2: "height", -1: "width"}}
    )
    assert shapes(loaded) == {"input": [1, 3, "height", "width"]}
    parity(loaded, at(loaded, height=21, width=9))
    assert shapes(ADAPTER.load(net, inputs=torch.randn(1, 3, 16, 16), dynamic=None)) == {
        "input": [1, 3, 16, 16]
    }


@pytest.mark.parametrize(
    ("dynamic", "message"),
    [({"inpt": {0: "n"}}, "did you mean 'input'"), ({"input": {7: "n"}}, "4 axes"),
     ({"input": 3}, "map axes"),
     ("all", "not understood"), ({"input": {0: "n", 1: "n"}}, "is 1 and 3")],
)  # fmt: skip
def test_wrong_axes_are_explained(dynamic: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ADAPTER.load(nn.Conv2d(3, 4, 3), inputs=torch.randn(1, 3, 16, 16), dynamic=dynamic)


def test_axes_that_the_module_fixes_are_told() -> None:
    class Fixed(nn.Module):
        def forward(self, x):
            return x.reshape(4, 6) + 1

    loaded = ADAPTER.load(Fixed(), inputs=torch.randn(4, 6))
    assert shapes(loaded) == {"x": [4, 6]}
    assert any("x axis 0 (batch)" in n for n in loaded.notes)
    parity(loaded)


def test_batch_of_one_that_the_module_insists_on() -> None:
    class One(nn.Module):
        def forward(self, x):
            assert x.shape[0] == 1
            return x * 2

    loaded = ADAPTER.load(One(), inputs=torch.randn(1, 6))
    assert shapes(loaded) == {"x": [1, 6]}
    parity(loaded)


# -- what torch.export refuses ---------------------------------------------------------------------


class Branch(nn.Module):
    """Looks at its data, though both ways give the same."""

    def __init__(self, differ: bool) -> None:
        super().__init__()
        self.fc, self.differ = nn.Linear(4, 4), differ

    def forward(self, x):
        if bool(x.sum() > 0) and self.differ:
            return -self.fc(x)
        return self.fc(x)


def test_tracing_takes_over() -> None:
    loaded = ADAPTER.load(Branch(differ=False), inputs=torch.randn(1, 4))
    assert any("tracing exporter" in n for n in loaded.notes)
    assert loaded.model.opset_imports[""] == 21
    parity(loaded)
    parity(loaded, at(loaded, batch=5))
    assert {"fc.weight", "fc.bias"} <= {n.removesuffix("_t") for n in loaded.model.graph.initializers}


def test_branches_on_data_are_not_flattened_in_silence() -> None:
    with pytest.raises(ConversionError, match="another way through its code"):
        ADAPTER.load(Branch(differ=True), inputs=torch.randn(2, 4))


def test_all_unsupported_operators_are_listed() -> None:
    class Exotic(nn.Module):
        def forward(self, x):
            return torch.special.bessel_j0(x) + torch.special.airy_ai(x)

    with pytest.raises(ConversionError) as caught:
        ADAPTER.load(Exotic(), inputs=torch.randn(2, 4))
    assert {"aten.special_bessel_j0", "aten.special_airy_ai"} <= set(caught.value.missing)


def test_scripted_modules() -> None:
    loaded = ADAPTER.load(
        torch.jit.script(nn.Sequential(nn.Linear(3, 4), nn.ReLU())), inputs=torch.randn(2, 3)
    )
    parity(loaded)
