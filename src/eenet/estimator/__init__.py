"""Cascades as estimators of scikit-learn."""

from eenet.errors import require

require("sklearn", reason="CascadeClassifier is an estimator of scikit-learn")

from eenet.estimator.classifier import CascadeClassifier  # noqa: E402

__all__ = ["CascadeClassifier"]
