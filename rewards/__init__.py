"""Text to number. Pure functions; nothing here knows of tokens, tensors, engines or machines."""

from rewards.config import RewardConfig
from rewards.score import OUTCOMES, Attempt, Rubric, Score, Task, Verdict

__all__ = ["OUTCOMES", "Attempt", "RewardConfig", "Rubric", "Score", "Task", "Verdict"]
