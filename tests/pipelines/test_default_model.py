"""The pipeline without a model: where the default one cannot be reached, it says what would do."""

from __future__ import annotations

import pytest
from transformers import pipeline

from ccrk.pipelines.ccr_retrieval import DEFAULT_MODEL


def test_no_model_and_no_network():
    """Tests run offline."""
    with pytest.raises(OSError, match=f"no model was named, and the default one, '{DEFAULT_MODEL[0]}'") as error:
        pipeline("ccr-retrieval")
    assert "ccrk train" in str(error.value) and "model=..." in str(error.value)
    assert error.value.__cause__ is None and error.value.__suppress_context__


def test_another_model_is_not_touched(tmp_path):
    with pytest.raises((OSError, ValueError)) as error:
        pipeline("ccr-retrieval", model=str(tmp_path))
    assert "no model was named" not in str(error.value)
