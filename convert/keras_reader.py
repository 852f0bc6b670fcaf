"""Files of Keras models, read without running anything of them: JSON and HDF5, looked at before Keras is asked."""

import io
import json
import re
import struct
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

import h5py
import keras
import ml_dtypes
import numpy as np

from convert import optimizer
from convert.comparison import Subject
from convert.keras_layers import Structure, layers_of_json, read_structure
from convert.keras_model import Form, abstract, abstract_subject, build, tensor_of
from convert.optimizer import OptimizerState
from convert.weights import aligned_empty, config_of_shapes, from_keras_list
from jaxlm.config import ModelConfig
from jaxlm.errors import InputError
from jaxlm.model import LanguageModel

LEAVES = ("0", "embeddings", "kernel", "1", "recurrent_kernel", "2", "bias")  # order within a layer
WRAPPERS = ("model_weights", "layers", "_layer_checkpoint_dependencies")  # groups above those of the layers
LARGEST_JSON = 1 << 24  # bytes
OPTIMIZER = re.compile(r"optimizer/vars/\d+")
NOT_WEIGHTS = re.compile(r"(^|/)(optimizer|optimizer_weights|seed_generator|metrics|top_level_model_weights)(/|$)")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns what Keras, h5py, TensorFlow and others raise on a damaged file into an `InputError`."""
    try:
        yield
    except (InputError, KeyboardInterrupt):
        raise
    except MemoryError as error:
        raise InputError(f"{path} cannot be read: it asks for more memory than there is.") from error
    except Exception as error:
        reason = (str(error) or repr(error)).strip().splitlines()[0][:200]
        raise InputError(f"{path} cannot be loaded: {reason}") from error


class Source(NamedTuple):
    """What a file says of its model: looked at, not loaded."""

    structure: Structure | None  # None in a file of weights alone
    weights: list[h5py.Dataset]  # in Keras' order
    config: dict[str, Any] | None  # of the model, where Keras 3 wrote it
    optimizer: tuple[dict[str, Any], list[h5py.Dataset]]  # its config and variables; empty where there is none


@contextmanager
def open_file(path: Path) -> Iterator[Source]:
    """Opens a `.keras`, `.h5` or `.weights.h5` file, of Keras 2 or 3, and checks it; without Keras.

    Raises:
      InputError: the file is missing, damaged or unsafe, or jaxlm cannot represent its model.
    """
    check_file(path)
    with reading(path), ExitStack() as stack:
        if path.suffix == ".keras":
            archive = stack.enter_context(zipfile.ZipFile(path))
            config, names = _archive_config(path, archive), []  # its groups have the names of classes, numbered
            version = json.loads(archive.read("metadata.json")).get("keras_version")
            file = stack.enter_context(h5py.File(stack.enter_context(_member(path, archive)), "r"))
        else:
            file = stack.enter_context(h5py.File(path, "r"))
            text, version = file.attrs.get("model_config"), file.attrs.get("keras_version")
            config = None if text is None else json.loads(text)
            names = [_text(name) for name in file.get("model_weights", file).attrs.get("layer_names", ())]
            _check_modules(path, config)
        single_step = config is not None and path.suffix == ".keras" and _is_single_step(config)
        structure = None if config is None or single_step else read_structure(layers_of_json(config))
        datasets = _datasets(path, file)
        weights = _weights(path, _group({k: v for k, v in datasets.items() if not NOT_WEIGHTS.search(k)}), names)
        slots = {int(name.split("/")[-1]): v for name, v in datasets.items() if OPTIMIZER.fullmatch(name)}
        compiled = ((config or {}).get("compile_config") or {}).get("optimizer") or {}
        keras_3 = str(version).startswith("3")
        yield Source(structure, weights, config if keras_3 else None, (compiled, [slots[i] for i in sorted(slots)]))


def read_file(path: Path) -> LanguageModel:
    """Reads the model of a `.keras`, `.h5` or `.weights.h5` file, in the file's ids.

    Raises:
      InputError: as `open_file`, or a weight is not finite.
    """
    with open_file(path) as source:
        config_of_shapes([dataset.shape for dataset in source.weights])  # before anything is read
        dropout = source.structure.dropout if source.structure else 0.0
        return from_keras_list([_read(dataset) for dataset in source.weights], dropout)


def read_optimizer(path: Path, config: ModelConfig) -> OptimizerState:
    """Reads the optimizer's state of a `.keras` file, in the file's ids.

    Raises:
      InputError: as `open_file`, it holds none, or one that jaxlm does not have.
    """
    with open_file(path) as source:
        settings, variables = source.optimizer
        if not settings or not variables:
            raise InputError(f"{path} has no optimizer whose state could be kept; leave --keep-optimizer out.")
        return optimizer.from_keras_list(settings, [_read(dataset) for dataset in variables], config)


def check_file(path: Path) -> None:
    """Raises where there is no such file."""
    if path.is_dir():
        raise InputError(f"{path} is a directory; expected a file.")
    if not path.is_file():
        raise InputError(f"{path} does not exist.")


def _archive_config(path: Path, archive: zipfile.ZipFile) -> Any:
    """Reads a .keras file's config.json after a look at the archive as a whole."""
    for name in archive.namelist():
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\\" in name:
            raise InputError(f"{path} is no Keras model: its member {name!r} leads out of it.")
    if sum(info.file_size for info in archive.infolist() if info.filename.endswith(".json")) > LARGEST_JSON:
        raise InputError(f"{path} is no Keras model: its JSON files are larger than {LARGEST_JSON:,} bytes.")
    damaged = archive.testzip()  # HDF5 has no checksums; the archive has
    if damaged:
        raise InputError(f"{path} is damaged: the checksum of its member {damaged} is wrong.")
    config = json.loads(archive.read("config.json"))
    _check_modules(path, config)
    return config


class _Part(io.RawIOBase):
    """A part of a file as a file, which `zipfile`'s own does not let h5py read without a pass over all before it."""

    def __init__(self, path: Path, start: int, size: int):
        self.file, self.start, self.size, self.place = path.open("rb", buffering=0), start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.place, io.SEEK_END: self.size}[whence]
        return self.place

    def readinto(self, buffer: Any) -> int:
        """Fills the whole buffer or raises: h5py does not look at how much of it was filled."""
        rest = memoryview(buffer).cast("B")
        if len(rest) > self.size - self.place:
            raise EOFError("its weights end too early")
        self.file.seek(self.start + self.place)
        self.place += len(rest)
        while rest:
            count = self.file.readinto(rest)  # the operating system reads 2 GB at most
            if not count:
                raise EOFError("its weights end too early")
            rest = rest[count:]
        return memoryview(buffer).nbytes

    def close(self) -> None:
        self.file.close()
        super().close()


def _member(path: Path, archive: zipfile.ZipFile) -> IO[bytes] | io.RawIOBase:
    """Opens the weights of a `.keras` file; Keras stores them as they are, another program may compress them."""
    info = archive.getinfo("model.weights.h5")
    if info.compress_type != zipfile.ZIP_STORED:
        return archive.open(info)
    if info.file_size != info.compress_size:
        raise InputError(f"{path} is damaged: its weights are stored as they are, and have two sizes.")
    with path.open("rb") as file:
        file.seek(info.header_offset)
        header = file.read(30)
    name, extra = struct.unpack("<HH", header[26:30])
    return _Part(path, info.header_offset + 30 + name + extra, info.file_size)


def _check_modules(path: Path, config: Any) -> None:
    """Raises where a config names classes that are not Keras' own, anywhere within."""
    values = list(config.values()) if isinstance(config, dict) else config if isinstance(config, list) else []
    if isinstance(config, dict) and "class_name" in config:
        module, registered = config.get("module") or "keras", config.get("registered_name")
        if str(module).split(".")[0] != "keras" or registered and ">" in str(registered):
            kind = f"{config['class_name']} of {registered or module}"
            raise InputError(f"{path} cannot be converted: {kind} is not a class of Keras, and is not run.")
    for value in values:
        _check_modules(path, value)


def _weights(path: Path, groups: dict[str, list[h5py.Dataset]], names: list[str]) -> list[h5py.Dataset]:
    if set(groups) <= set(names):  # a whole .h5 has the layers' own names
        order = [name for name in names if name in groups]
    else:  # other files have those of their classes, numbered
        order = sorted(groups, key=lambda name: (_place(name, groups[name]), _number(name)))
        lstms = [re.sub(r"_\d+$", "", name) for name in order if len(groups[name]) == 3]
        if len(set(lstms)) > 1:
            raise InputError(f"{path}: the order of the layers {lstms} cannot be told; convert the whole model.")
    return [dataset for name in order for dataset in groups[name]]


def _datasets(path: Path, file: h5py.File) -> dict[str, h5py.Dataset]:
    """All datasets by their paths; links are not followed."""
    found: dict[str, h5py.Dataset] = {}
    largest = path.stat().st_size * 64  # as big as compression could make it

    def visit(name: str, item: Any) -> None:
        if not isinstance(item, h5py.Dataset):
            return
        if item.dtype.kind not in "fiuV" or item.external or item.is_virtual:
            raise InputError(f"{path}: {name} is no array of numbers of this file (it has dtype {item.dtype}).")
        if item.nbytes > max(largest, 1 << 24):
            raise InputError(f"{path}: {name} is larger than its file.")
        found[name] = item

    file.visititems(visit)
    if sum(item.nbytes for item in found.values()) > max(largest, 1 << 26):
        raise InputError(f"{path}: its weights are larger than the file.")
    return found


def _text(name: Any) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)


def _group(datasets: dict[str, h5py.Dataset]) -> dict[str, list[h5py.Dataset]]:
    """Datasets by layer, within one in the order kernel, recurrent_kernel, bias."""
    groups: dict[str, list[tuple[int, h5py.Dataset]]] = {}
    for name, dataset in datasets.items():
        parts = [part for part in name.split("/") if part not in WRAPPERS]
        leaf = parts[-1].split(":")[0]
        if leaf not in LEAVES:
            raise InputError(f"Weight {name!r} is none of Embedding, LSTM or Dense.")
        groups.setdefault(parts[0], []).append((LEAVES.index(leaf), dataset))
    return {name: [dataset for _, dataset in sorted(group, key=lambda pair: pair[0])] for name, group in groups.items()}


def _read(dataset: h5py.Dataset) -> np.ndarray:
    array = aligned_empty(dataset.shape, dataset.dtype)
    if array.shape:
        dataset.read_direct(array)
    else:
        array[()] = dataset[()]
    return array.view(ml_dtypes.bfloat16) if array.dtype == np.dtype("V2") else array  # as Keras stores it


def _place(name: str, group: list[h5py.Dataset]) -> int:
    """Embedding has one weight, LSTM three, a bottleneck (dense) one again, and Dense, at the end, two."""
    if len(group) == 1:
        return 2 if name.startswith("dense") else 0
    return 1 if len(group) == 3 else 3


def _number(name: str) -> int:
    match = re.search(r"_(\d+)$", name)
    return int(match[1]) if match else 0


def load_keras(path: Path) -> Subject:
    """Reads a `.keras` or `.h5` file for comparison: Keras' own layers, with no second copy of a weight.

    Keras is asked with `safe_mode=True`, and only about a file whose layers jaxlm knows.

    Raises:
      InputError: as `read_file`.
    """
    with open_file(path) as source:
        config = config_of_shapes([dataset.shape for dataset in source.weights])
        structure, description = source.structure, source.config
        weights = [tensor_of(_read(dataset)) for dataset in source.weights]
    if description is None:
        form = Form(structure.logits, structure.last_only) if structure else Form()
        found = abstract_subject(abstract(lambda: build(config, form)), weights, path.name)
        return found._replace(first_id=int(bool(structure and structure.mask_zero)))
    with reading(path):
        return abstract_subject(abstract(lambda: _deserialized(description)), weights, path.name)


def _deserialized(config: dict[str, Any]) -> keras.Model:
    config = config | {"compile_config": None}  # an optimizer takes no part in a comparison
    if "module" in config:
        return keras.saving.deserialize_keras_object(config, safe_mode=True)
    kind = keras.Sequential if config["class_name"] == "Sequential" else keras.Model  # .h5 keeps Keras 2's words
    return kind.from_config(config["config"])


def _is_single_step(config: dict[str, Any]) -> bool:
    """Whether a model is one of `keras_model.build` with `single_step`: by its inputs' names."""
    inner = config.get("config")
    layers = inner.get("layers") if isinstance(inner, dict) else None
    if not isinstance(layers, list) or not all(isinstance(layer, dict) for layer in layers):
        return False
    names = [str(layer.get("name")) for layer in layers if layer.get("class_name") == "InputLayer"]
    known = {"InputLayer", "Embedding", "LSTM", "Dense", "Activation"}.issuperset(
        layer.get("class_name") for layer in layers
    )
    return known and len(names) > 2 and all(re.fullmatch(r"token_ids|[hc]_\d+", name) for name in names)
