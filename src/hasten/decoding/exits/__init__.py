"""How sure a state after an early layer is: one measure a file, named as the file is."""

from __future__ import annotations

from collections.abc import Mapping

from hasten.core.exits import REQUEST_MEASURES, TOKEN_MEASURES
from hasten.decoding.exits.base import Measure
from hasten.decoding.exits.classifier import Classifier
from hasten.decoding.exits.entropy import Entropy
from hasten.decoding.exits.saturation import Saturation
from hasten.decoding.exits.softmax import Softmax

MEASURES: Mapping[str, Measure] = {measure.name: measure for measure in (Softmax(), Saturation(), Classifier(), Entropy())}
assert set(MEASURES) == {*TOKEN_MEASURES, *REQUEST_MEASURES}
