"""Prompt to group of completions. Importing this costs milliseconds: the engine is not loaded."""

from rollout.types import Completion, Group, Prompt, ScoredGroup

__all__ = ["Completion", "Group", "Prompt", "ScoredGroup"]
