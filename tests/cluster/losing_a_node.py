"""Program: a pool on a Ray cluster of three nodes, one of which is lost while its workers are busy.

Connects by address, so that the code travels as Ray's working_dir; leaves what came out in
`result.json`.
"""

import json
import os
import sys
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from cluster.fanout import Pool
from cluster.resources import Resources
from cluster.session import session

ITEMS = 12


class Hostage:
    """Its item 0 says where it is and then waits for ever, the first time."""

    def node(self, item: int, folder: Path) -> tuple[str, list[str]]:
        import curation

        node = ray.get_runtime_context().get_node_id()
        if item == 0 and not (folder / "victim").exists():
            (folder / "victim").write_text(node)
            (folder / "pipe").write_text(node)
            (folder / "never").read_text()  # blocks until the node is lost
        shipped = Path(curation.__file__).parent.parent
        return node, sorted(
            str(path.relative_to(shipped)) for path in shipped.rglob("*") if path.is_file()
        )


def main(folder: Path) -> None:
    for name in ("pipe", "never"):
        os.mkfifo(folder / name)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes = {
        node.node_id: node for node in (cluster.add_node(num_cpus=2), cluster.add_node(num_cpus=2))
    }
    with session(address=cluster.address), Pool(Hostage, resources=Resources(workers=4)) as pool:
        results = pool.map("node", list(range(ITEMS)), folder)
        answers = dict([next(results)])
        victim = (folder / "pipe").read_text()
        cluster.remove_node(nodes[victim], allow_graceful=False)
        answers |= dict(results)
    cluster.shutdown()
    result = {"answers": sorted(answers.items()), "victim": victim, "nodes": sorted(nodes)}
    (folder / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
