"""The CloudFormation that ParallelCluster would submit: synthesise.py CONFIG FOLDER (in its environment)."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import yaml
from pcluster.models.s3_bucket import S3Bucket
from pcluster.schemas.cluster_schema import ClusterSchema
from pcluster.templates.cdk_builder import CDKTemplateBuilder
from pcluster.templates.import_cdk import start


def main(config: str, folder: str) -> None:
    start()
    document = yaml.safe_load(Path(config).read_text("utf-8"))
    cluster = ClusterSchema(cluster_name="vsr").load(document)
    cluster.source_config = document
    cluster.config_version = cluster.original_config_version = "1"
    bucket = S3Bucket(
        service_name="vsr",
        stack_name="vsr",
        artifact_directory="parallelcluster/clusters/vsr",
        name="vsr-hpc-data",
    )
    template, assets = CDKTemplateBuilder().build_cluster_template(
        cluster_config=cluster, bucket=bucket, stack_name="vsr"
    )
    parts = {"cluster": template, **{f"nested{index}": each["content"] for index, each in enumerate(assets)}}
    for name, content in parts.items():
        (Path(folder) / f"{name}.json").write_text(json.dumps(content, indent=1), "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
