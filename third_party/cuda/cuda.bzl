"""The CUDA toolkit out of NVIDIA's wheels."""

load("//third_party/python:wheels.bzl", "fetch_wheels")

# nvcc hashes the absolute path of a source into the names of its symbols. In a
# sandbox that path differs each time, so it is made relative on its way.
_CUDAFE = """#!/bin/bash
exec "$0.real" "${@//"$PWD/"/}"
"""

def _cuda_toolkit_impl(ctx):
    fetch_wheels(ctx, ctx.attr.wheels, "nvidia/cu13")
    ctx.execute(["mv", "bin/cudafe++", "bin/cudafe++.real"])
    ctx.file("bin/cudafe++", _CUDAFE, executable = True)
    ctx.execute(["chmod", "+x", "nvvm/bin/cicc"] + [
        "bin/" + tool
        for tool in ["bin2c", "cudafe++.real", "fatbinary", "nvcc", "nvlink", "ptxas"]
    ])
    versions = dict([wheel.split("==") for wheel in ctx.attr.wheels])
    ctx.file("version.txt", versions["nvidia-cuda-nvcc"])
    ctx.symlink(ctx.attr._build_file, "BUILD")

cuda_toolkit = repository_rule(
    implementation = _cuda_toolkit_impl,
    attrs = {
        "wheels": attr.string_dict(mandatory = True),
        "_build_file": attr.label(default = "//third_party/cuda:cuda.BUILD"),
    },
    doc = "nvcc, the CUDA headers and the static runtime, from pinned wheels.",
)
