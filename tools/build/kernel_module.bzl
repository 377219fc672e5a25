"""kernel_module: the Python extension of a family."""

def kernel_module(name, family, deps = ["//python/bind"], **kwargs):
    """sgl_kernel/<name>.so, from sgl_kernel/<name>.cc and all of its family.

    It links nothing of torch's, nothing of the driver's, and the CUDA runtime
    only statically: so it can be imported on any machine.

    Args:
      name: the name of the module, as _gemm. The library that the target of this
        name gives is the module's file.
      family: the kernel_family that it binds.
      deps: what it is bound with.
      **kwargs: visibility, tags and the like.
    """
    file = "sgl_kernel/%s.so" % name
    native.cc_binary(
        name = file,
        srcs = ["sgl_kernel/%s.cc" % name],
        copts = ["-fvisibility=hidden"],
        linkopts = [
            # Two families may hold the same function: each keeps its own.
            "-Wl,--exclude-libs,ALL",
            "-Wl,-Bsymbolic",
            "-Wl,--gc-sections",
        ],
        linkshared = True,
        deps = [family, "@pybind11"] + deps,
        **kwargs
    )
    native.filegroup(
        name = name,
        srcs = [file],
        **kwargs
    )
