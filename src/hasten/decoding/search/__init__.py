"""Searches: who forks and who dies. Integers and scores only."""

from hasten.decoding.search.base import BeamStep, Candidate, Hypothesis, Search
from hasten.decoding.search.beam import BeamSearch

__all__ = ["BeamSearch", "BeamStep", "Candidate", "Hypothesis", "Search"]
