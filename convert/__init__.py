"""Convert between jaxlm and Keras in every form Keras models travel in; each conversion is proven.

Names are imported when they are first used, so that `jaxlm-convert --help` does not wait for Keras.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=[],
    submod_attrs={
        "keras_model": ["from_keras", "load_into_keras", "to_keras"],
        "flax_tree": ["from_flax"],
        "runs": ["frequency_order"],
    },
)
