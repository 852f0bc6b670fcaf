"""`ExportOptions`: what an exported model computes. Imports nothing heavy, so that --help is fast."""

from typing import Literal, NamedTuple

FormatName = Literal["keras", "h5", "weights.h5", "savedmodel", "tflite", "onnx"]
Dtype = Literal["float32", "float16", "bfloat16", "int8"]


class ExportOptions(NamedTuple):
    """What an exported model computes. Not every format has every option."""

    logits: bool = False  # leaves out the softmax
    last_only: bool = False  # predicts only the word after the last one, [batch, vocab_size]
    single_step: bool = False  # takes one word and the LSTM states, returns the new states too
    dtype: Dtype = "float32"  # of the weights; a softmax is always computed in float32


DEFAULT_OPTIONS = ExportOptions()
