"""`ExportOptions`: inputs, outputs and data type of an exported model. Light imports keep --help fast."""

from typing import Literal, NamedTuple

FormatName = Literal["keras", "h5", "weights.h5", "savedmodel", "tflite", "onnx"]
Dtype = Literal["float32", "float16", "bfloat16", "int8"]


class ExportOptions(NamedTuple):
    """Inputs, outputs and data type of an exported model. Not every format supports every option.

    Attributes:
      logits: whether the softmax is left out.
      last_only: whether to return only the distribution of the next word, `[batch, vocab_size]`.
      single_step: whether the model takes one word and the LSTM states, and returns the new states too.
      dtype: data type of the weights. The softmax is always in float32.
    """

    logits: bool = False
    last_only: bool = False
    single_step: bool = False
    dtype: Dtype = "float32"


DEFAULT_OPTIONS = ExportOptions()
