"""Real logits: scikit-learn's digits, and the words of Python's own documentation."""

import pathlib
import runpy

import numpy as np
import oracle
import pytest

import twopass

pytest.importorskip("sklearn")

EXAMPLE = pathlib.Path(__file__).parent.parent / "examples" / "real_logits.py"


@pytest.fixture(scope="module")
def example():
    """The example's functions."""
    if not EXAMPLE.exists():
        pytest.skip("needs the source tree")
    return runpy.run_path(str(EXAMPLE))


@pytest.fixture(scope="module")
def words(example):
    """Counts of words and of pairs of words."""
    return example["word_counts"]()


def test_digits(example):
    """softmax of the decision function is predict_proba, and every row is within the bounds."""
    logits, expected = example["digits"]()
    probabilities = twopass.softmax(logits, axis=1)
    np.testing.assert_allclose(probabilities, expected, rtol=1e-12, atol=1e-15)
    for row, logit in zip(probabilities, logits, strict=True):
        assert oracle.softmax_error(row, logit) <= 3
    np.testing.assert_allclose(
        twopass.log_softmax(logits, axis=1), np.log(expected), rtol=1e-9, atol=1e-12
    )
    single = twopass.softmax(logits.astype(np.float32), axis=1)
    assert (single.argmax(axis=1) == expected.argmax(axis=1)).all()


def test_unigrams(example, words):
    """softmax of logarithms of counts gives the frequencies; logsumexp the number of words."""
    unigrams, _ = words
    counts = np.array([count for _, count in unigrams.most_common()])
    assert len(counts) > 1000
    logits = example["unigram_logits"](unigrams)
    for dtype, rtol in ((np.float64, 1e-14), (np.float32, 2e-6)):
        frequencies = twopass.softmax(logits.astype(dtype))
        np.testing.assert_allclose(frequencies, counts / counts.sum(), rtol=rtol)
        total = twopass.logsumexp(logits.astype(dtype))
        np.testing.assert_allclose(total, np.log(counts.sum()), rtol=4 * np.finfo(dtype).eps)


def test_bigrams(example, words):
    """One row of millions of logits gives the smoothed frequencies, in place too."""
    logits, counts = example["bigram_logits"](*words)
    assert logits.dtype == np.float32
    assert len(logits) > 1 << 22
    total = counts.sum(dtype=np.float64)
    frequencies = twopass.softmax(logits)
    # The logarithms are rounded to float32: half an ulp of at most 10.
    np.testing.assert_allclose(frequencies[::97] * total, counts[::97], rtol=2e-6)
    largest = np.argmax(counts)
    np.testing.assert_allclose(frequencies[largest] * total, counts[largest], rtol=2e-6)
    assert abs(frequencies.sum(dtype=np.float64) - 1) < 1e-7
    np.testing.assert_allclose(twopass.logsumexp(logits), np.log(total), rtol=1e-6)
    in_place = logits.copy()
    twopass.softmax(in_place, out=in_place, n_threads=2)
    assert oracle.same_bits(in_place, frequencies)


@pytest.mark.slow
def test_the_example_runs(example, capsys):
    """The example prints what it shows, and the differences are small."""
    example["main"]()
    printed = capsys.readouterr().out
    for word in ("digits", "unigrams", "bigrams", "predict_proba"):
        assert word in printed
