"""Without TensorFlow, Keras and ONNX: the commands and functions that need them name the extra that installs them."""

from convert_helpers import run_python

BLOCKED = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("keras", "tensorflow", "tf_keras", "onnx", "onnxruntime"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocker())
"""
WITHOUT_PACKAGES = (
    BLOCKED
    + """
import numpy as np
import convert
from convert import cli
cell = {"dense_i": {"kernel": np.zeros((3, 16))}, "dense_h": {"kernel": np.zeros((4, 16)), "bias": np.zeros(16)}}
head = {"kernel": np.zeros((4, 5)), "bias": np.zeros(5)}
model = convert.from_flax({"embed": {"embedding": np.zeros((5, 3))}, "cell": cell, "head": head})
assert model.config.hidden_size == 4 and convert.frequency_order([1, 2]).tolist() == [1, 0]
for name in ("to_keras", "from_keras", "load_into_keras", "fit_keras"):
    try:
        getattr(convert, name)
    except ImportError as error:
        print(error)
run = sys.argv[1]
for command in (["to-keras", run, "a.keras"], ["from-keras", "a.h5", "new", "--vocabulary", "a"], ["verify", run, run]):
    assert cli.run(command) == 2
"""
)


def test_functions_and_commands_that_need_keras_name_its_extra(run_dir, tmp_path):
    result = run_python("-c", WITHOUT_PACKAGES, run_dir, cwd=tmp_path, JAX_ENABLE_COMPILATION_CACHE="false")
    assert result.returncode == 0, result.stderr
    message = "Not installed: keras. Run: pip install 'jaxlm[keras]'"
    assert result.stdout.splitlines() == [message] * 4
    assert result.stderr.splitlines() == [f"error: {message}"] * 3


def test_formats_that_need_tensorflow_name_its_extra(run_dir, tmp_path):
    code = BLOCKED.replace('"keras", ', "") + "from convert import cli\nfor out in sys.argv[2:]: "
    code += "cli.run(['to-keras', sys.argv[1], out])"
    result = run_python("-c", code, run_dir, tmp_path / "saved", tmp_path / "a.tflite", KERAS_BACKEND="jax")
    assert result.stderr == "error: Not installed: tensorflow. Run: pip install 'jaxlm[keras]'\n" * 2


def test_the_first_use_of_keras_prints_no_messages_of_tensorflow():
    code = """
import jax, convert, jaxlm
from flax import nnx
model = jaxlm.LanguageModel(jaxlm.ModelConfig(9, embedding_size=2, hidden_size=2), rngs=nnx.Rngs(0))
convert.to_keras(model).predict(jax.numpy.zeros((1, 3), int), verbose=0)
"""
    result = run_python("-c", code, TF_CPP_MIN_LOG_LEVEL="0")
    assert result.returncode == 0, result.stderr
    assert not [line for line in result.stderr.splitlines() if "PjRt-IFRT" not in line]  # those are of JAX
