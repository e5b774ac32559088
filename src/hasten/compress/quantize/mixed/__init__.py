"""Mixed precision: bits for each decoder layer, by measured KL divergence.

``kl_evaluator.py`` measures the KL of an assignment of bits to layers. ``search.py`` measures each layer alone, lets
``allocation.py`` choose an assignment as if the KL of layers added up, and corrects it by measuring it.
"""
