"""Times jaxlm's training step on a GPU beside PyTorch's, whose LSTM is cuDNN's.

    python examples/benchmarks/gpu.py

Two models: the README's, and the LSTM-2048-512 of Jozefowicz et al. 2016, https://arxiv.org/abs/1602.02410, with its
vocabulary and 8,192 samples, whose bottleneck lies outside the recurrence here. The sizes are parameters, to try it
without a GPU, where it runs on the processor and says so. jaxlm in float32 is not among the peers: on a GPU, its
step was still not compiled after half a minute, since XLA tries many programs for each float32 product.
"""

import train_step
import tyro

from jaxlm.matmul import fast_dtype

README = {"vocab_size": 200_000, "embedding_size": 256, "hidden_size": 1024, "num_sampled": 1000, "sequence_length": 35}
LSTM_2048_512 = {
    "vocab_size": 793_471,
    "embedding_size": 512,
    "hidden_size": 2048,
    "projection_size": 512,
    "num_sampled": 8192,
    "sequence_length": 20,
}


def main(batch_sizes: tuple[int, ...] = (32, 128), divisor: int = 1, steps: int = 20, repeats: int = 15) -> None:
    """Prints a table for each model and batch size.

    Args:
      batch_sizes: Streams of text.
      divisor: Of all sizes of the models.
      steps: Steps in a row, without waiting for the device.
      repeats: Timed turns of each method.
    """
    peers: tuple[train_step.Peer, ...] = ("torch-sparse",)
    if fast_dtype() == "bfloat16":  # PyTorch has no such LSTM on other processors
        peers += ("torch-sparse-bfloat16",)
    for model in (README, LSTM_2048_512):
        sizes = {name: max(1, size // divisor) for name, size in model.items()}
        for batch_size in batch_sizes:
            train_step.main(peers, **sizes, batch_size=batch_size, steps=steps, repeats=repeats)
            print()


if __name__ == "__main__":
    tyro.cli(main)
