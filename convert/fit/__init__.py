"""`fit_keras`: sampled training of a live Keras model, in place of `model.fit`.

Imports: the root, `weights`, `checks` and `keras_models`.
"""

from convert.packages import import_optional

import_optional("keras", "keras")
