"""One file per family, named after its ``model_type``.

A file says how a configuration becomes a ``DecoderSpec``, and has the weight names. It holds ``FAMILY``, a
``hasten.models.family.ModelFamily``. No other file changes when a family is added.
"""
