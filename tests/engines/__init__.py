"""The same job on real engines: Flink, Prism, Dask; `python -m tests.engines` is the long form."""
