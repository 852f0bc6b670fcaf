"""Predicts next words with an exported model. Needs only Keras, not jaxlm.

python examples/keras_inference.py novels.keras runs/novels/vocabulary.json "It was the"
"""

import json
import os
import re
import sys

import numpy as np

# TensorFlow writes start-up messages straight to file descriptor 2, most of them before it reads the variable
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
stderr = os.dup(2)
os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
try:
    import keras
finally:
    os.dup2(stderr, 2)

model_file, vocabulary_file, text = sys.argv[1:]
with open(vocabulary_file, encoding="utf-8") as file:
    words = json.load(file)["words"]
ids = {word: i for i, word in enumerate(words)}

model = keras.models.load_model(model_file)
tokens = ["<eos>", *re.findall(r"\w+|[^\w\s]", text)]  # words, and each punctuation mark; a line ended before them
token_ids = np.array([[ids.get(token, ids["<unk>"]) for token in tokens]])
probabilities = model.predict(token_ids, verbose=0)  # [batch, time, vocab]
print(f"{text} ...")
for i in np.argsort(-probabilities[0, -1])[:8]:
    print(f"  {probabilities[0, -1, i]:6.1%}  {words[i]}")
