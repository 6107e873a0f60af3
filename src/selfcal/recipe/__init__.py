"""A recipe: YAML in, frozen settings out.

A recipe says everything that a run depends on. It is read once, at the edge.
"""

from selfcal.recipe.asked import (
    Endpoint,
    EndpointLabels,
    EndpointMarker,
    EndpointTeacher,
    FileLabels,
    FileTeacher,
    JudgeEndpoint,
    Labels,
    Local,
    LocalLabels,
    LocalMarker,
    LocalTeacher,
    Marker,
    MiniWorldTeacher,
    Teacher,
    VerifierLabels,
)
from selfcal.recipe.base import Settings
from selfcal.recipe.executor import Executor, LocalExecutor, RayExecutor
from selfcal.recipe.load import RecipeError, explain, load_recipe, nearest, read_configuration
from selfcal.recipe.settings import (
    Curate,
    Data,
    Evaluate,
    Judge,
    Policy,
    Recipe,
    Reward,
    Search,
    Server,
    Source,
)
from selfcal.recipe.training import (
    Dpo,
    Grpo,
    JudgeTraining,
    Lora,
    Rft,
    Training,
    passes,
)

__all__ = [
    "Curate", "Data", "Dpo", "Endpoint", "EndpointLabels", "EndpointMarker", "EndpointTeacher",
    "Evaluate", "Executor", "FileLabels", "FileTeacher", "Grpo", "Judge", "JudgeEndpoint",
    "JudgeTraining", "Labels", "Local", "LocalExecutor", "LocalLabels", "LocalMarker",
    "LocalTeacher", "Lora", "Marker", "MiniWorldTeacher", "Policy", "RayExecutor", "Recipe",
    "RecipeError", "Reward", "Rft", "Search", "Server",
    "Settings", "Source", "Teacher", "Training", "VerifierLabels", "explain", "load_recipe",
    "nearest", "passes", "read_configuration",
]  # fmt: skip
