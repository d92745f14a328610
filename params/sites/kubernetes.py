"""A Kubernetes cluster: pods of one GPU and one worker each.

Needs `pip install kubernetes`, and NVIDIA's device plugin in the cluster. The image holds this
package; the claim is a volume that all pods share, where runs and cache lie. Start the sweep with
DEPTHPRUNE_RUNS naming the same folder of that volume.
"""

from parsl.addresses import address_by_hostname
from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.providers import KubernetesProvider

IMAGE, NAMESPACE = "registry.example/depthprune:latest", "default"
CLAIM, MOUNT = "depthprune", "/depthprune"


def config() -> Config:
    """Up to sixteen pods; a cell that failed or lost its worker runs once more."""
    provider = KubernetesProvider(
        image=IMAGE,
        namespace=NAMESPACE,
        worker_init=f"export DEPTHPRUNE_RUNS={MOUNT}/runs DEPTHPRUNE_CACHE={MOUNT}/cache",
        persistent_volumes=[(CLAIM, MOUNT)],
        init_blocks=1,
        max_blocks=16,
        init_cpu=4,
        max_cpu=8,
        init_mem="16Gi",
        max_mem="32Gi",
        extra_limits={"nvidia.com/gpu": "1"},
    )
    workers = HighThroughputExecutor(
        label="kubernetes",
        provider=provider,
        address=address_by_hostname(),
        available_accelerators=1,
        max_workers_per_node=1,
    )
    return Config(executors=[workers], retries=1)
