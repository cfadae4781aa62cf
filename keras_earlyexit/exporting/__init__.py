"""Writes models with exits as bundles; `ee.export` is in `bundles`."""
