"""Table to new weights. Importing this loads neither torch nor DeepSpeed."""

from learner.config import LearnerConfig, ModelConfig

__all__ = ["LearnerConfig", "ModelConfig"]
