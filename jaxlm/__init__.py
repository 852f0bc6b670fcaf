"""Train word-level LSTM language models over very large vocabularies, and export them as plain Keras models.

Names are imported on first use (`__init__.pyi` lists them), so that `jaxlm --help` does not wait for JAX.
"""

import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
