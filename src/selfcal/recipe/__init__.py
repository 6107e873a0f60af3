"""A recipe: YAML in, frozen settings out.

A recipe says everything that a run depends on. It is read once, at the edge.
"""

from selfcal.recipe.load import RecipeError, explain, load_recipe, nearest
from selfcal.recipe.settings import (
    Curate,
    Data,
    Dpo,
    Endpoint,
    Evaluate,
    Grpo,
    Judge,
    JudgeTraining,
    Labels,
    Lora,
    Policy,
    Recipe,
    Reward,
    Rft,
    Search,
    Settings,
    Teacher,
    Training,
)

__all__ = [
    "Curate", "Data", "Dpo", "Endpoint", "Evaluate", "Grpo", "Judge", "JudgeTraining", "Labels",
    "Lora", "Policy", "Recipe", "RecipeError", "Reward", "Rft", "Search", "Settings", "Teacher",
    "Training", "explain", "load_recipe", "nearest",
]  # fmt: skip
