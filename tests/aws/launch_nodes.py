"""Start nodes as a head node does: aws-parallelcluster-node's own fleet code on existing launch templates.

python launch_nodes.py CONFIG.yaml CLUSTER REGION COUNT     (in ParallelCluster's environment)
"""

from __future__ import annotations

import json
import sys

import yaml
from botocore.config import Config
from slurm_plugin.fleet_manager import FleetManagerFactory


def main(path: str, cluster: str, region: str, count: str) -> None:
    with open(path) as file:  # noqa: PTH123
        queues = yaml.safe_load(file)["Scheduling"]["SlurmQueues"]
    fleet = {
        queue["Name"]: {
            resource["Name"]: {
                "Api": "create-fleet",
                "CapacityType": {"SPOT": "spot", "ONDEMAND": "on-demand"}[queue["CapacityType"]],
                "AllocationStrategy": queue["AllocationStrategy"],
                "Instances": resource["Instances"],
                "Networking": {"SubnetIds": queue["Networking"]["SubnetIds"]},
            }
            for resource in queue["ComputeResources"]
        }
        for queue in queues
    }
    launched = {}
    for queue, resources in fleet.items():
        for resource in resources:
            manager = FleetManagerFactory.get_manager(
                cluster, region, Config(retries={"max_attempts": 1}), fleet, queue, resource, False, {}, {}
            )
            launched[f"{queue}/{resource}"] = [each.id for each in manager.launch_ec2_instances(int(count))]
    json.dump(launched, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
