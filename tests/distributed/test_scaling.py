"""The simulated cluster of benchmarks.scaling, small: shards go to all nodes, each once, and the output does not tell how many."""

import json
import os
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow]

CHILD = """
import json, sys
from pathlib import Path
from benchmarks.waiting import Nodes, wait_stage
top, found = Path(sys.argv[1]), []
with Nodes(2) as nodes:
    for number, in_pool in ((2, False), (2, True), (1, False)):
        nodes.shrink(number)
        waited = wait_stage(top / f"{number}-{in_pool}", 16, 0.5, number, in_pool=in_pool)
        receipts = len(list((top / f"{number}-{in_pool}" / "_shards").iterdir()))
        files = [[f.path, f.sha256] for f in waited.manifest.files]
        found.append([len(waited.nodes), receipts, files, waited.shards_s])
print(json.dumps(found))
"""


def test_two_nodes_share_the_shards_and_write_what_one_node_writes(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = [sys.executable, "-c", CHILD, str(tmp_path)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, timeout=300)
    assert done.returncode == 0
    two, pool, one = json.loads(done.stdout.splitlines()[-1])
    assert [one[0], two[0], pool[0]] == [1, 2, 2]
    assert one[1] == two[1] == pool[1] == 16
    assert one[2] == two[2] == pool[2]
    assert len(one[2]) == 16
    assert min(one[3], two[3], pool[3]) > 0
