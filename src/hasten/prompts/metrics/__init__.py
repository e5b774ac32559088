"""One file per metric, named after it.

A file holds ``make_metric``, which returns a ``hasten.prompts.metric.Metric`` from the text after the colon of ``NAME:ARGUMENT``,
and ``ARGUMENT``, which says what that text is, or None. No other file changes when a metric is added.
"""
