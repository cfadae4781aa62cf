"""The worker that runs the later stages of a model that was cut.

It answers what edge workers could not, in batches across all of them. Start it
with `cloud-worker serve`, or `python -m cloud_worker serve`.
"""
