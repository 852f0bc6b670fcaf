"""Trains a language model with jaxlm as a library, with the loop written out.

jaxlm prepare train.txt --out data && python examples/train_lm.py data
"""

import sys

import jaxlm

NUM_STEPS, EVALUATE_EVERY = 500, 100

corpus = jaxlm.load_corpus(sys.argv[1])
vocab_size = len(corpus.vocabulary)
model_config = jaxlm.ModelConfig(vocab_size, embedding_size=64, hidden_size=128)
train_config = jaxlm.TrainConfig(num_sampled=min(200, vocab_size))
state = jaxlm.TrainState.from_corpus(corpus, model_config, train_config)
learning_rate = jaxlm.learning_rate_schedule(jaxlm.ScheduleConfig(learning_rate=3e-3), NUM_STEPS)

for step, batch in enumerate(jaxlm.train_batches(corpus.train, train_config, NUM_STEPS)):
    state, loss = jaxlm.train_step(state, batch, learning_rate(step))  # updates the state in place
    if (step + 1) % EVALUATE_EVERY == 0:
        evaluation = jaxlm.evaluate(state.model, corpus.valid, max_tokens=5000)
        print(f"step {step + 1}: training loss {loss:.3f}, exact validation perplexity {evaluation.perplexity:.1f}")
