"""Text to number. Pure functions; nothing here knows of tokens, tensors, engines or machines."""

from rewards.config import RewardConfig
from rewards.score import Attempt, Rubric, Score, Verifier, find_verifier

__all__ = ["Attempt", "RewardConfig", "Rubric", "Score", "Verifier", "find_verifier"]
