"""Reading bundles that nobody vouches for: names, sizes and hashes are checked before anything is used."""

from __future__ import annotations

import contextlib
import hashlib
import math
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from attar import graph
from attar.bundle import codec
from attar.bundle.manifest import check_manifest, parse_json
from attar.bundle.write import MANIFEST, MODEL, RECIPE, REPORT
from attar.errors import InputError
from attar.graph.read import proto_graphs

SUFFIX = ".attar"
_ENTRY = re.compile(r"weights/\d{5,7}")
_ENTRIES = 1 << 20
# A bundle may unpack to this much, or to so many times its own size: far beyond what real weights do.
_FLOOR, _TIMES = 1 << 28, 400
_TEXT = 1 << 28  # of manifest, recipe and report


@dataclass(frozen=True)
class Bundle:
    """What a bundle holds.

    Attributes:
        model: with all weights in memory.
        recipe: TOML, or None.
        report: as `Report.to_dict` gives it, or None.
        manifest: as it stands in the file.
    """

    model: ir.Model
    recipe: str | None
    report: dict[str, Any] | None
    manifest: dict[str, Any]


def is_bundle(path: Any) -> bool:
    """Whether the name says that it is a bundle."""
    return isinstance(path, str | Path) and Path(path).suffix.lower() == SUFFIX


def read(path: str | Path, *, limit: int | None = None) -> Bundle:
    """Unpack a bundle. Nothing is written, and no name in it is ever used as a path.

    Args:
        limit: bytes that it may unpack to; by default 256 MB or 400 times its size, whichever is more.

    Raises:
        InputError: it is no bundle, damaged, cut short, larger than the limit, of a later format, or its
            content is not what its hashes say.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder, not a bundle")
    try:
        with path.open("rb") as file:
            with _sound(str(path)):
                archive = zipfile.ZipFile(file)
            with archive:
                size = path.stat().st_size
                room = max(_FLOOR, _TIMES * size) if limit is None else limit
                return _Reader(archive, str(path), size, room).bundle()
    except InputError as error:
        if error.message.startswith(str(path)):
            raise
        raise InputError(f"{path}: {error.message}", hint=error.hint) from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


@contextlib.contextmanager
def _sound(source: str) -> Iterator[None]:
    """Around what zipfile reads: its errors are the file's.

    BadZipFile is for headers, checksums and what is no zip; zlib.error and EOFError for data;
    UnicodeDecodeError for names; RuntimeError for encrypted entries, and as NotImplementedError for versions
    and forms of zip that it does not know.
    """
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, EOFError, UnicodeDecodeError, RuntimeError) as error:
        raise InputError(
            f"{source} is not an attar bundle, or it is damaged or cut short ({error})"
        ) from error


class _Reader:
    def __init__(self, archive: zipfile.ZipFile, source: str, size: int, room: int) -> None:
        self.archive, self.source, self.room = archive, source, room
        infos = archive.infolist()
        if len(infos) > _ENTRIES:
            raise InputError(f"{source} has {len(infos)} entries, more than any bundle")
        self.infos = {info.filename: info for info in infos}
        if len(self.infos) != len(infos):
            raise InputError(f"{source} has two entries of one name")
        for name, info in self.infos.items():
            # Only what `write` uses: others bring decoders with limits and errors of their own.
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise InputError(
                    f"{source}: the entry {name!r:.200} is compressed by method {info.compress_type}"
                )
            if not 0 <= info.header_offset < size:
                raise InputError(f"{source}: the entry {name!r:.200} lies outside the file")
            if name not in (MANIFEST, MODEL, RECIPE, REPORT) and not _ENTRY.fullmatch(name):
                raise InputError(f"{source} has the entry {name!r:.200}, which no bundle has")

    def bundle(self) -> Bundle:
        manifest = parse_json(self._bytes(MANIFEST, _TEXT), MANIFEST)
        check_manifest(manifest)
        self.hashes: Mapping[str, str] = manifest["files"]
        if set(self.hashes) != set(self.infos) - {MANIFEST}:
            raise InputError(f"{self.source} does not hold the entries that its manifest names")
        weights = sum(math.prod(w["shape"]) * w["itemsize"] for w in manifest["weights"])
        self._within(self._info(MODEL).file_size + weights)
        proto = graph.parse(self._checked(MODEL), self.source)
        model = self._model(proto, {w["entry"]: w for w in manifest["weights"]})
        report = parse_json(self._checked(REPORT), REPORT) if REPORT in self.infos else None
        return Bundle(model, self._recipe(), report, manifest)

    def _recipe(self) -> str | None:
        if RECIPE not in self.infos:
            return None
        try:
            return self._checked(RECIPE).decode()
        except UnicodeDecodeError as error:
            raise InputError(f"{self.source}: the entry {RECIPE} is no text ({error})") from error

    def _info(self, name: str) -> zipfile.ZipInfo:
        if name not in self.infos:
            raise InputError(f"{self.source} is not an attar bundle: it has no {name}")
        return self.infos[name]

    def _within(self, size: int) -> None:
        """Accept `size` as what the bundle may unpack to."""
        if size > self.room:
            raise InputError(
                f"{self.source} would unpack to {size} bytes, more than the limit of {self.room}",
                hint="if you trust it, give a higher limit",
            )

    def _model(self, proto: Any, weights: Mapping[str, Mapping[str, Any]]) -> ir.Model:
        """The model with its weights put in place of their names."""
        done: dict[str, bytes] = {}
        size = self._info(MODEL).file_size
        for part in proto_graphs(proto.graph):
            for tensor in part.initializer:
                if tensor.data_location != tensor.EXTERNAL:
                    continue
                where = {e.key: e.value for e in tensor.external_data}.get("location", "")
                if where not in weights:
                    raise InputError(
                        f"{self.source}: weight {tensor.name!r} is in {where!r:.200}, which it has not"
                    )
                if where not in done:
                    done[where] = self._weight(weights[where])
                size += len(done[where])  # of each name, since each gets its own copy
                self._within(size)
                del tensor.external_data[:]
                tensor.ClearField("data_location")
                tensor.raw_data = done[where]
        if set(done) != set(weights):
            raise InputError(f"{self.source} packs weights that its model does not name")
        return graph.from_proto(proto, None, self.source)

    def _weight(self, about: Mapping[str, Any]) -> bytes:
        data = self._checked(about["entry"])
        words = codec.unpack(about, data, tuple(about["shape"]), about["itemsize"])
        plain = words.astype(words.dtype.newbyteorder("<"), copy=False).tobytes()
        if hashlib.sha256(plain).hexdigest() != about["sha256"]:
            raise InputError(f"{self.source}: the weight in {about['entry']} is not the one that was packed")
        return plain

    def _checked(self, name: str) -> bytes:
        limit = _TEXT if name in (RECIPE, REPORT) else self.room
        data = self._bytes(name, limit)
        if hashlib.sha256(data).hexdigest() != self.hashes.get(name):
            raise InputError(f"{self.source}: the entry {name} is not what its hash says")
        return data

    def _bytes(self, name: str, limit: int) -> bytes:
        """An entry, of which no more is unpacked than it declares, and no more than `limit`."""
        info = self._info(name)
        if info.file_size > limit:
            raise InputError(f"{self.source}: the entry {name} has {info.file_size} bytes, more than {limit}")
        # zipfile stops at the declared size and checks the CRC.
        with _sound(self.source), self.archive.open(info) as stream:
            data = stream.read(info.file_size + 1)
        if len(data) != info.file_size:
            raise InputError(f"{self.source}: the entry {name} is cut short")
        return data
