"""`fit_keras`: sampled training of a live Keras model, in place of `model.fit`.

Imports: the root, `weights`, `checks` and `keras_models`.
"""

from jaxlm.errors import require_packages

require_packages("keras", "keras")
