"""Trains a language model with jaxlm as a library, the loop written out.

jaxlm prepare train.txt --out data && python examples/train_lm.py data
"""

import dataclasses
import sys
from pathlib import Path

from flax import nnx

import jaxlm

STEPS, EVALUATE_EVERY = 500, 100

corpus = jaxlm.load_corpus(Path(sys.argv[1]))
tokens = corpus.train  # [N] int32, memory-mapped

model_config = jaxlm.ModelConfig(vocab_size=len(corpus.vocabulary), embedding_size=64, hidden_size=128)
config = jaxlm.TrainConfig(num_sampled=min(200, len(corpus.vocabulary)), batch_size=16, steps=STEPS)
word_vectors = jaxlm.word_vectors(tokens, model_config.vocab_size, model_config.embedding_size)
model = jaxlm.LanguageModel(model_config, corpus.vocabulary.log_unigram, word_vectors, rngs=nnx.Rngs(0))
state = jaxlm.TrainState.create(model, config)
batches = jaxlm.batches_per_epoch(tokens.size, config.batch_size, config.sequence_length)

for step in range(STEPS):
    if step % batches == 0:  # an epoch begins with the zero state
        state = dataclasses.replace(state, carry=state.model.initial_carry(config.batch_size))
    inputs, labels, _ = jaxlm.train_batch(tokens, step, config.batch_size, config.sequence_length)
    rate = jaxlm.learning_rate(config, step, STEPS)
    state, loss = jaxlm.train_step(state, inputs, labels, rate)  # updates the state in place
    if (step + 1) % EVALUATE_EVERY == 0:
        evaluation = jaxlm.evaluate(state.model, corpus.valid, max_tokens=5000)
        print(f"step {step + 1}: training loss {loss:.3f}, exact validation perplexity {evaluation.perplexity:.1f}")
