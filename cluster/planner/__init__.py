"""What a cluster would give a recipe: `python -m cluster plan` (docs/planner.md)."""
