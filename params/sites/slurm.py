"""A Slurm cluster: blocks of one node, one worker a GPU.

Change the lines in capitals; the checkout must lie where every node sees it.
"""

from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.launchers import SrunLauncher
from parsl.providers import SlurmProvider

GPUS_PER_NODE = 4
PARTITION, ACCOUNT = "gpu", None
WALLTIME = "04:00:00"
SETUP = "source .venv/bin/activate"  # run on a node before its workers start


def config() -> Config:
    """Up to eight nodes; a cell that failed or lost its worker runs once more."""
    provider = SlurmProvider(
        partition=PARTITION,
        account=ACCOUNT,
        walltime=WALLTIME,
        worker_init=SETUP,
        scheduler_options=f"#SBATCH --gpus-per-node={GPUS_PER_NODE}",
        launcher=SrunLauncher(),
        nodes_per_block=1,
        init_blocks=1,
        max_blocks=8,
    )
    workers = HighThroughputExecutor(
        label="slurm", provider=provider, available_accelerators=GPUS_PER_NODE
    )
    return Config(executors=[workers], retries=1)
