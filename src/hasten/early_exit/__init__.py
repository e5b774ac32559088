"""How sure a state after an early layer is: one measure a file, named as the file is."""

from __future__ import annotations

from collections.abc import Mapping

from hasten.core.early_exit import REQUEST_CRITERIA, TOKEN_CRITERIA
from hasten.early_exit.base import ConfidenceMeasure
from hasten.early_exit.classifier import Classifier
from hasten.early_exit.entropy import Entropy
from hasten.early_exit.saturation import Saturation
from hasten.early_exit.softmax import Softmax

CONFIDENCE_MEASURES: Mapping[str, ConfidenceMeasure] = {
    measure.name: measure for measure in (Softmax(), Saturation(), Classifier(), Entropy())
}
assert set(CONFIDENCE_MEASURES) == {*TOKEN_CRITERIA, *REQUEST_CRITERIA}
