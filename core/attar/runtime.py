"""Running models. A `Runtime` opens a model as a `Session`; ONNX Runtime is the one that attar ships.

Sessions take named numpy arrays, check them against the model's signature before the runtime sees them, and
turn the runtime's exceptions into `InputError` that name the input or node.
"""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np

from attar.errors import InputError, check_whole, did_you_mean
from attar.report import Kernel
from attar.specs import TensorSpec

if TYPE_CHECKING:
    import onnx_ir as ir

Array = np.ndarray[Any, np.dtype[Any]]
Feeds = Mapping[str, Array]
# Above this many bytes of weights a model goes to the runtime through a file: protobuf ends at 2 GB.
_BY_FILE = 1 << 30


class Runtime:
    """Base of runtimes: something that can run an ONNX model."""

    name: ClassVar[str] = ""

    def version(self) -> str:
        raise InputError(f"the runtime {self.name!r} does not tell its version")

    def open(
        self,
        model: ir.Model | str | Path | bytes,
        *,
        threads: int = 1,
        optimize: bool = True,
        profile: bool = False,
    ) -> Session:
        """Load a model.

        Args:
            model: the IR, a path or serialized bytes.
            threads: intra-operator threads; 0 lets the runtime choose.
            optimize: False turns every graph optimization off.
            profile: record the time of every kernel; read by `Session.profile`.

        Raises:
            InputError: the runtime cannot load it; the message is the runtime's.
        """
        raise InputError(f"the runtime {self.name!r} cannot open models")


class Session:
    """A loaded model. Calling it with an array, a tuple or a dict of arrays runs it."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[str, ...]

    def run(self, feeds: Feeds) -> list[Array]:
        """Outputs in graph order.

        Raises:
            InputError: an input is missing, unknown, of another type or shape, or the runtime failed.
        """
        raise InputError("this session cannot run")

    def kernels(self) -> tuple[Kernel, ...]:
        """The optimized graph as the runtime will execute it."""
        return ()

    def profile_of(self, feeds: Feeds) -> tuple[Kernel, ...]:
        """The kernels with the median time of each."""
        return self.kernels()

    def __call__(self, *arrays: Any, **named: Any) -> list[Array]:
        if len(arrays) == 1 and isinstance(arrays[0], Mapping):
            named, arrays = {**arrays[0], **named}, ()
        if len(arrays) == 1 and isinstance(arrays[0], tuple | list):
            arrays = tuple(arrays[0])
        if len(arrays) > len(self.inputs):
            raise InputError(f"{len(arrays)} inputs given, the model has {len(self.inputs)}")
        feeds = {spec.name: np.asarray(a) for spec, a in zip(self.inputs, arrays, strict=False)}
        return self.run({**feeds, **{k: np.asarray(v) for k, v in named.items()}})


class OnnxRuntime(Runtime):
    """ONNX Runtime, CPU execution provider by default.

    Args:
        provider: the execution provider, as ONNX Runtime names it.
        config: session config entries, e.g. `{"session.intra_op.allow_spinning": "0"}`.
    """

    name = "onnxruntime"

    def __init__(
        self, provider: str = "CPUExecutionProvider", config: Mapping[str, str] | None = None
    ) -> None:
        self.provider = provider
        self.config = dict(config or {})

    def version(self) -> str:
        import onnxruntime

        return str(onnxruntime.__version__)

    def open(
        self,
        model: ir.Model | str | Path | bytes,
        *,
        threads: int = 1,
        optimize: bool = True,
        profile: bool = False,
    ) -> OrtSession:
        check_whole("threads", threads)
        return OrtSession(self, model, threads=threads, optimize=optimize, profile=profile)


class OrtSession(Session):
    """A model loaded by ONNX Runtime."""

    def __init__(
        self,
        runtime: OnnxRuntime,
        model: ir.Model | str | Path | bytes,
        *,
        threads: int,
        optimize: bool,
        profile: bool,
    ) -> None:
        import onnxruntime as ort

        if runtime.provider not in ort.get_available_providers():
            raise InputError(
                f"execution provider {runtime.provider!r} is not in this onnxruntime",
                hint=did_you_mean(runtime.provider, ort.get_available_providers()),
            )
        self._folder = tempfile.TemporaryDirectory(prefix="attar-")
        self._source = _source_of(model, Path(self._folder.name))
        self._runtime, self._threads, self._optimize = runtime, threads, optimize
        self._profiling = profile
        self._session = self._start(profile=profile)
        self.inputs = tuple(
            TensorSpec(i.name, _NUMPY.get(i.type, np.dtype(object)), _shape(i.shape))
            for i in self._session.get_inputs()
        )
        self.outputs = tuple(o.name for o in self._session.get_outputs())

    def run(self, feeds: Feeds) -> list[Array]:
        feeds = self._checked(feeds)
        try:
            return cast("list[Array]", self._session.run(None, feeds))
        except Exception as error:  # onnxruntime's exceptions have no public base
            raise InputError(f"the model failed while running: {_first_line(error)}") from error

    def kernels(self) -> tuple[Kernel, ...]:
        """The kernels of the optimized graph, without times. Costs a second load of the model."""
        from attar.kernels import read_optimized

        if not self._optimize:
            raise InputError("kernels are read from an optimized session; open it with optimize=True")
        path = Path(self._folder.name) / "optimized.onnx"
        if not path.exists():
            self._start(profile=False, optimized=path)
        return read_optimized(path)

    def profile(self, feeds: Feeds, *, runs: int = 20, warmup: int = 3) -> tuple[Kernel, ...]:
        """The kernels with the median time of each over `runs` runs. Ends the recording of this session.

        Raises:
            InputError: the session was not opened with `profile=True`, or was profiled already.
        """
        from attar.kernels import add_times

        if not self._profiling:
            raise InputError("open the session with profile=True, and profile it once")
        feeds = self._checked(feeds)
        for _ in range(warmup + runs):
            self._session.run(None, feeds)
        self._profiling = False
        events = json.loads(Path(self._session.end_profiling()).read_text())
        times: dict[str, list[float]] = defaultdict(list)
        types: dict[str, Any] = {}
        for event in events:
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                name = event["name"].removesuffix("_kernel_time")
                times[name].append(event["dur"] / 1000)
                types[name] = event["args"]
        return add_times(self.kernels(), times, types, skip=warmup)

    def profile_of(self, feeds: Feeds) -> tuple[Kernel, ...]:
        twin = OrtSession(
            self._runtime, self._source, threads=self._threads, optimize=self._optimize, profile=True
        )
        return twin.profile(feeds)

    # -- internals ---------------------------------------------------------------------------------------

    def _start(self, *, profile: bool, optimized: Path | None = None) -> Any:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # what matters comes back as an exception
        if not self._optimize:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        if self._threads != 1:
            # Idle pools that spin steal the cores from the session that is being timed next to them.
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        for key, value in self._runtime.config.items():
            options.add_session_config_entry(key, value)
        if profile:
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(self._folder.name) / "profile")
        if optimized is not None:
            options.optimized_model_filepath = str(optimized)
            options.add_session_config_entry(
                "session.optimized_model_external_initializers_file_name", "optimized.data"
            )
        try:
            return ort.InferenceSession(self._source, options, providers=[self._runtime.provider])
        except Exception as error:
            raise InputError(f"ONNX Runtime cannot load the model: {_first_line(error)}") from error

    def _checked(self, feeds: Feeds) -> dict[str, Array]:
        known = {spec.name: spec for spec in self.inputs}
        for name in feeds:
            if name not in known:
                raise InputError(f"the model has no input {name!r}", hint=did_you_mean(name, known))
        out = {}
        for name, spec in known.items():
            if name not in feeds:
                raise InputError(f"input {name!r} is missing", hint=f"expected {spec}")
            array = np.asarray(feeds[name])
            if spec.dtype not in (array.dtype, np.dtype(object)):
                if not np.can_cast(array.dtype, spec.dtype, "same_kind"):
                    raise InputError(f"input {name!r} is {array.dtype}, expected {spec}")
                array = array.astype(spec.dtype)
            if spec.shape is not None and (
                array.ndim != len(spec.shape)
                or any(
                    isinstance(want, int) and want >= 0 and want != got
                    for want, got in zip(spec.shape, array.shape, strict=True)
                )
            ):
                raise InputError(f"input {name!r} has shape {list(array.shape)}, expected {spec}")
            out[name] = array
        return out


_NUMPY: dict[str, np.dtype[Any]] = {
    f"tensor({ort})": np.dtype(kind)
    for ort, kind in {
        "float": "f4", "double": "f8", "float16": "f2", "int64": "i8", "int32": "i4", "int16": "i2",
        "int8": "i1", "uint64": "u8", "uint32": "u4", "uint16": "u2", "uint8": "u1", "bool": "?",
    }.items()
}  # fmt: skip


def _source_of(model: ir.Model | str | Path | bytes, folder: Path) -> str | bytes:
    if isinstance(model, bytes):
        return model
    if isinstance(model, str | Path):
        if not Path(model).is_file():
            raise InputError(f"no such file: {model}")
        return str(model)
    from attar import graph

    if graph.byte_size(model) < _BY_FILE:
        return graph.to_bytes(model)
    path = folder / "model.onnx"
    graph.save(model, path)
    return str(path)


def _shape(shape: Sequence[Any] | None) -> tuple[int | str | None, ...] | None:
    if shape is None:
        return None
    return tuple(d if isinstance(d, int | str) else None for d in shape)


def _first_line(error: Exception) -> str:
    """ONNX Runtime's messages without its source paths."""
    text = " ".join(str(error).split())
    for marker in ("[ONNXRuntimeError] : ", " : "):
        if marker in text[:80]:
            text = text.split(marker, 1)[1]
    return text[:600]
