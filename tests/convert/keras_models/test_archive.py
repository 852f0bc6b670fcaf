"""`.keras` archives: nothing leads out of them, nothing in them is executed, and weights are read in full."""

import io
import json
import zipfile

import pytest
from convert_helpers import assert_models_equal, assert_refused, make_keras_model

from convert.files.export import export
from convert.keras_models.archive import open_weights
from convert.keras_models.reader import read_model


@pytest.fixture
def members(tmp_path) -> dict[str, bytes]:
    """The members of a good archive."""
    make_keras_model().save(tmp_path / "good.keras")
    with zipfile.ZipFile(tmp_path / "good.keras") as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write_archive(path, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)


@pytest.mark.parametrize("name", ["../escape", "/etc/escape", "assets/../../escape", "a\\..\\..\\escape"])
def test_a_member_that_leads_out_of_the_archive_is_refused(members, tmp_path, name):
    write_archive(tmp_path / "a.keras", members | {name: b"x"})
    assert_refused(tmp_path / "a.keras", "points outside the archive")
    assert {entry.name for entry in tmp_path.iterdir()} == {"a.keras", "good.keras"}


@pytest.mark.parametrize(
    ("module", "kind", "message"),
    [
        ("os", "system", "expected only classes of Keras"),
        ("builtins", "exec", "expected only classes of Keras"),
        ("keras.layers", "Lambda", "'evil' .Lambda. cannot be converted"),
        ("keras.layers", "TorchModuleWrapper", "'evil'"),
    ],
)
def test_a_layer_that_would_run_code_is_refused(members, tmp_path, module, kind, message):
    marker = tmp_path / "ran"
    changed = json.loads(members["config.json"])
    settings = {"name": "evil"} if module == "keras.layers" else {"command": f"touch {marker}"}
    changed["config"]["layers"][2] |= {"module": module, "class_name": kind, "config": settings}
    write_archive(tmp_path / "a.keras", members | {"config.json": json.dumps(changed).encode()})
    assert_refused(tmp_path / "a.keras", message)
    assert not marker.exists()


def test_a_foreign_class_deep_inside_a_layer_is_refused(members, tmp_path):
    changed = json.loads(members["config.json"])
    changed["config"]["layers"][2]["config"]["kernel_initializer"] |= {"module": "os", "class_name": "system"}
    write_archive(tmp_path / "a.keras", members | {"config.json": json.dumps(changed).encode()})
    assert_refused(tmp_path / "a.keras", "expected only classes of Keras")


def test_weights_are_read_in_full_or_not_at_all(random_run, tmp_path):
    path = tmp_path / "a.keras"
    export(random_run(), path)

    class Slow(io.FileIO):
        def readinto(self, buffer):  # as the operating system does with more than 2 GB
            return super().readinto(memoryview(buffer)[:100])

    with zipfile.ZipFile(path) as archive, open_weights(path, archive) as weights:
        whole, weights.file = archive.read("model.weights.h5"), Slow(path)
        buffer = bytearray(len(whole))
        assert weights.readinto(buffer) == len(whole) and bytes(buffer) == whole
        with pytest.raises(EOFError):
            weights.readinto(buffer)


def test_compressed_weights_are_read(random_run, tmp_path):
    run, path, packed = random_run(), tmp_path / "a.keras", tmp_path / "b.keras"
    export(run, path)
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as compressed:
        for info in archive.infolist():
            compressed.writestr(info.filename, archive.read(info))
    assert_models_equal(read_model(packed), run.model)


def test_a_wrong_size_in_the_directory_of_the_archive_is_refused(random_run, tmp_path):
    path = tmp_path / "a.keras"
    export(random_run(), path)
    data = bytearray(path.read_bytes())
    entry = data.rindex(b"PK\x01\x02", 0, data.rindex(b"model.weights.h5"))
    data[entry + 24 : entry + 28] = (int.from_bytes(data[entry + 24 : entry + 28], "little") + 8).to_bytes(4, "little")
    path.write_bytes(data)
    assert_refused(path, "damaged")
