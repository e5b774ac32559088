"""Searches: who forks and who dies. Integers and scores only."""

from hasten.search.base import BeamStep, Candidate, Hypothesis, Search
from hasten.search.beam import BeamSearch

__all__ = ["BeamSearch", "BeamStep", "Candidate", "Hypothesis", "Search"]
