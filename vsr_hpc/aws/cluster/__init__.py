"""ParallelCluster for vsr_hpc: render, check, create, watch, update, delete, and the bucket it lives on.

ParallelCluster itself is never imported: its pins (attrs < 24, marshmallow 3, CDK 1) would drag every other
package back years. It lives in an environment of its own and is driven by YAML in and JSON out.
"""
