"""Guides: what the tokens of an output have to be, by a grammar or by the state of a thought."""
