"""This machine through Parsl: two workers, each with a GPU of its own where there are any.

To try a site file before there is a cluster.
"""

from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.providers import LocalProvider


def config() -> Config:
    """Two workers; a cell whose worker is lost fails, and runs with the next sweep."""
    provider = LocalProvider(init_blocks=1, max_blocks=1)
    workers = HighThroughputExecutor(
        label="here", provider=provider, address="127.0.0.1", available_accelerators=2
    )
    return Config(executors=[workers])
