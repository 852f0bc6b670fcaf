"""Converts models between jaxlm, Keras, TensorFlow, LiteRT, ONNX and Flax. Every conversion is checked.

Names are imported on first use, so that `jaxlm-convert --help` does not wait for Keras.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=[],
    submod_attrs={
        "fit.fit_keras": ["fit_keras"],
        "options": ["ExportOptions"],
        "keras_models.in_memory": ["from_keras", "load_into_keras", "to_keras"],
        "formats.flax_params": ["from_flax"],
        "weights.id_order": ["frequency_order"],
    },
)
