"""This machine through Parsl: two workers. To try a site file before there is a cluster."""

from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.providers import LocalProvider


def config() -> Config:
    """Two workers; a cell whose worker is lost fails, and runs with the next sweep."""
    provider = LocalProvider(init_blocks=1, max_blocks=1)
    return Config(
        executors=[HighThroughputExecutor(label="here", provider=provider, address="127.0.0.1", max_workers_per_node=2)]
    )
