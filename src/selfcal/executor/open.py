"""The executor that a recipe names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from selfcal.executor.base import Executor
from selfcal.executor.local import Here
from selfcal.executor.room import ClusterError
from selfcal.recipe import RayExecutor, Recipe


@contextmanager
def open_executor(recipe: Recipe) -> Iterator[Executor]:
    """Set up who does the work, for as long as the block runs.

    Raises:
        ClusterError: Ray is not installed, or its cluster cannot be had.
    """
    settings = recipe.executor
    if not isinstance(settings, RayExecutor):
        yield Here()
        return
    try:
        import ray.data  # noqa: F401
    except ImportError as error:
        raise ClusterError(
            f"recipe {recipe.name}: executor.kind: `ray` needs Ray, which cannot be imported "
            f"({error}); pip install 'selfcal[ray]', or leave the executor out"
        ) from error
    from selfcal.executor.ray import open_cluster

    with open_cluster(settings) as cluster:
        yield cluster
