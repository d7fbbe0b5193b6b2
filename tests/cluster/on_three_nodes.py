"""Program: runs a command line of the pipeline on a Ray cluster of three nodes of one CPU each."""

import os
import sys

from ray.cluster_utils import Cluster

from cluster.session import free_port
from pipeline.__main__ import main

STORE_BYTES = 100 * 1024**2

if __name__ == "__main__":
    cluster = Cluster()
    for _ in range(3):
        cluster.add_node(
            num_cpus=1,
            object_store_memory=STORE_BYTES,
            include_dashboard=False,
            dashboard_agent_listen_port=free_port(),
        )
    os.environ["RAY_ADDRESS"] = cluster.address

    try:
        code = main(sys.argv[1:])
    finally:
        cluster.shutdown()
    sys.exit(code)
