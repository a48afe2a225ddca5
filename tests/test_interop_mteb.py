import numpy as np
import pytest

from research.interop import mteb as adapter


def hashed(texts, role):
    """Bags of hashed words: enough for every task to run."""
    x = np.full((len(texts), 32), 1e-3, np.float32)
    for i, text in enumerate(texts):
        for word in str(text).split():
            x[i, sum(map(ord, word)) % 32] += 1
    return x


@pytest.mark.slow  # imports torch and runs some thirty small tasks
def test_mteb_runs_our_encoder_on_its_mock_tasks():
    mteb = pytest.importorskip("mteb")
    encoder = adapter.encoder(
        hashed, name="embax/test", revision="step-0", dim=32, max_length=128
    )
    assert mteb.mock_run(encoder).all_passed
