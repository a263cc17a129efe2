"""Softmax of real logits: a classifier's many short rows, and one long row of word counts.

    python examples/real_logits.py

Needs scikit-learn. The text is the documentation that comes with Python (``pydoc_data.topics``).
"""

import itertools
import re
from collections import Counter
from pydoc_data.topics import topics

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

import twopass


def digits():
    """Logits of every handwritten digit, and the probabilities that scikit-learn gives them."""
    x, y = load_digits(return_X_y=True)
    model = LogisticRegression(solver="newton-cg", max_iter=1000).fit(x / 16, y)
    return model.decision_function(x / 16), model.predict_proba(x / 16)


def word_counts():
    """Every word of Python's documentation with its count, and every pair of neighbours."""
    words = re.findall(r"[a-z_]+", " ".join(topics.values()).lower())
    return Counter(words), Counter(itertools.pairwise(words))


def unigram_logits(unigrams):
    """One row: log of each word's count, most frequent first."""
    return np.log([count for _, count in unigrams.most_common()])


def bigram_logits(unigrams, bigrams, smoothing=0.01):
    """One long row: log of each pair's count, add-`smoothing`, for all pairs of words."""
    number = {word: i for i, (word, _) in enumerate(unigrams.most_common())}
    counts = np.full((len(number), len(number)), smoothing, np.float32)
    for (first, second), count in bigrams.items():
        counts[number[first], number[second]] += count
    return np.log(counts).ravel(), counts.ravel()


def main():
    """Print what softmax makes of both."""
    logits, expected = digits()
    probabilities = twopass.softmax(logits, axis=1)
    print(f"digits: {len(logits)} rows of {logits.shape[1]} logits")
    print(f"  {twopass.plan(logits.shape, logits.dtype, 1)}")
    print(f"  largest difference to predict_proba: {abs(probabilities - expected).max():.1e}")

    unigrams, bigrams = word_counts()
    frequencies = twopass.softmax(unigram_logits(unigrams))
    word, count = unigrams.most_common(1)[0]
    print(f"unigrams: {len(unigrams)} words, {unigrams.total()} in all")
    print(f"  P({word!r}) = {frequencies[0]:.6f}, counted {count / unigrams.total():.6f}")

    logits, counts = bigram_logits(unigrams, bigrams)
    frequencies = twopass.softmax(logits)
    total = counts.sum(dtype=np.float64)
    error = abs(frequencies * total / counts - 1).max()
    print(f"bigrams: one row of {len(logits)} logits, {logits.dtype}")
    print(f"  {twopass.plan(logits.shape, logits.dtype)}")
    print(f"  largest relative difference to counting: {error:.1e}")
    print(f"  sum of all probabilities: {frequencies.sum(dtype=np.float64):.9f}")


if __name__ == "__main__":
    main()
