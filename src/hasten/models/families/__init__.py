"""One file per family, named after its ``model_type``: how its configuration becomes a ``DecoderSpec``, and its weight names.

A file holds ``FAMILY``, a ``hasten.models.family.ModelFamily``. Nothing else is edited to add one.
"""
