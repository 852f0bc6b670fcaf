"""One training step under `jax.jit`: the state, the objective, the gradients and their row-sparse updates. No files.

Imports: the root, `candidate_sampling`, `parallel`, `data`, `model` and `losses`.
"""
