"""Benchmarks of the kernels, next to torch and the public kernel libraries. See __main__.py."""
