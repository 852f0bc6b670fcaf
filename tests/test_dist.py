"""The wheel and the source archive: built, complete, and installed into a fresh environment."""

import email
import os
import shutil
import site
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import jaxlm

ROOT = Path(__file__).parent.parent


def run(*command: object, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The wheel and the source archive, built from a copy, since a build writes into its tree."""
    copy, out = tmp_path_factory.mktemp("source") / "jaxlm", tmp_path_factory.mktemp("dist")
    ignored = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, copy, ignore=ignored)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, copy, cwd=out)
    return sorted(out.iterdir())


@pytest.mark.slow
def test_the_wheel_installs_and_runs_without_the_repository(archives, tmp_path):
    assert [path.name for path in archives] == [
        f"jaxlm-{jaxlm.__version__}-py3-none-any.whl",
        f"jaxlm-{jaxlm.__version__}.tar.gz",
    ]
    wheel = archives[0]  # built from the source archive
    environment = tmp_path / "environment"
    run(sys.executable, "-m", "venv", "--without-pip", environment, cwd=tmp_path)
    (packages,) = environment.glob("lib/python*/site-packages")
    # the dependencies come from the environment of the tests; its editable jaxlm does not, since .pth files of a
    # directory on the path are not read
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    python = environment / "bin" / "python"
    options = ["--no-deps", "--no-index", "--quiet", "--ignore-installed"]
    run(python, "-m", "pip", "install", *options, wheel, cwd=tmp_path)
    code = (
        "import jaxlm, convert, jaxlm.candidate_sampling; from jaxlm import *; from convert import *;"
        "print(jaxlm.__file__, convert.__file__)"
    )
    assert all(str(packages) in path for path in run(python, "-c", code, cwd=tmp_path).split())
    assert "prepare" in run(environment / "bin" / "jaxlm", "--help", cwd=tmp_path)
    assert "to-keras" in run(environment / "bin" / "jaxlm-convert", "--help", cwd=tmp_path)


@pytest.mark.slow
def test_archives_are_complete(archives):
    wheel, source = archives
    names = set(zipfile.ZipFile(wheel).namelist())
    files = [path for name in ("jaxlm", "convert") for path in (ROOT / name).rglob("*") if path.is_file()]
    expected = {str(path.relative_to(ROOT)) for path in files if "__pycache__" not in path.parts}
    assert expected <= names and "jaxlm/py.typed" in names
    members = {name.split("/", 1)[-1] for name in tarfile.open(source).getnames()}
    assert {"README.md", "LICENSE", "CHANGELOG.md", "docs/conf.py", "docs/images/quickstart.png", "Makefile"} <= members
    (metadata,) = [name for name in names if name.endswith(".dist-info/METADATA")]
    fields = email.message_from_bytes(zipfile.ZipFile(wheel).read(metadata))
    for field in (
        "Summary",
        "Author",
        "License-Expression",
        "License-File",
        "Keywords",
        "Classifier",
        "Requires-Python",
    ):
        assert fields[field], field
    assert fields["Version"] == jaxlm.__version__ and fields.get_payload().startswith("# jaxlm")


WITHOUT_EXTRAS = """
import sys
sys.modules.update(dict.fromkeys(("keras", "tensorflow", "matplotlib", "jinja2", "tensorboardX", "onnx")))
import convert.cli, jaxlm.cli
data = sys.argv[1]
sizes = "--embedding-size 4 --hidden-size 4 --num-sampled 9 --batch-size 2 --steps 2 --eval-tokens 50".split()
assert jaxlm.cli.run(["train", data, "--out", "run", *sizes]) == 0
assert jaxlm.cli.run(["evaluate", "run", "--max-tokens", "50"]) == 0
assert jaxlm.cli.run(["report", "run"]) == 2
assert convert.cli.run(["to-keras", "run", "model.keras"]) == 2
try:
    from convert import fit_keras
except ImportError as error:
    print(error)
"""


@pytest.mark.slow
def test_what_an_extra_brings_is_named_where_it_is_missing(corpus_dir, tmp_path):
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_EXTRAS, corpus_dir], cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert "No curve and no report are written. Not installed: matplotlib" in result.stdout
    assert result.stderr.endswith(
        "error: Not installed: matplotlib, jinja2. Run: pip install 'jaxlm[report]'\n"
        "error: Not installed: keras. Run: pip install 'jaxlm[keras]'\n"
    )
    assert result.stdout.splitlines()[-1] == "Not installed: keras. Run: pip install 'jaxlm[keras]'"
