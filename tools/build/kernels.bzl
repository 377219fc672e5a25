"""kernel_library and kernel_family: file names are the build description."""

load("//third_party/cuda:targets.bzl", "SM_TARGETS", "check_targets")
load(":cuda_library.bzl", "cuda_library")
load(":kernel_targets.bzl", "kernel_targets")

_COPTS = [
    "-O3",
    # A symbol that a Python module exported could clash with another module's.
    "-fvisibility=hidden",
]

def kernel_library(
        name,
        targets = SM_TARGETS,
        sm90a_replaces = [],
        sm100a_replaces = [],
        sm120a_replaces = [],
        sm100a_deps = [],
        hdrs = [],
        deps = [],
        copts = [],
        exclude = [],
        **kwargs):
    """A concept: a few operators that share a kernel.

    It takes these files of its folder:
      <name>.h  <name>_*.h      its declaration, and what its sources share
      <name>.cc  <name>_*.cc    its host side and its CPU target
      <name>.cu  <name>_*.cu    portable CUDA: compiled for each of its SM targets
      <name>_*.cuh              what its CUDA sources share
      <name>*_sm90a.cu          compiled for sm_90a only; likewise _sm100a, _sm120a
    In the .cc files SGL_HAS_SM_90A and the like are defined for the targets that
    are both built and served.

    Args:
      name: the name of the concept.
      targets: the SM targets that the CUDA sources serve.
      sm90a_replaces: portable sources that are not compiled for sm_90a, because
        a <name>*_sm90a.cu stands in for them.
      sm100a_replaces: likewise for sm_100a.
      sm120a_replaces: likewise for sm_120a.
      sm100a_deps: further libraries of the <name>*_sm100a.cu, as @cutlass.
      hdrs: further headers, those that several concepts of a folder share.
      deps: further C++ libraries.
      copts: further flags for the .cc files.
      exclude: patterns of files that belong to another concept, where that
        one's name begins with this one's.
      **kwargs: visibility, tags and the like.
    """
    check_targets(name, targets)

    not_ours = exclude + ["*_test.*"]
    headers = native.glob(
        [name + ".h", name + "_*.h", name + "_*.cuh"],
        exclude = not_ours,
    ) + hdrs
    replaces = {
        "sm_90a": sm90a_replaces,
        "sm_100a": sm100a_replaces,
        "sm_120a": sm120a_replaces,
    }
    own = {
        target: native.glob(
            [name + "*_" + target.replace("_", "") + ".cu"],
            exclude = not_ours,
        )
        for target in replaces
    }
    replaced = {source: True for sources in replaces.values() for source in sources}.keys()
    portable = native.glob(
        [name + ".cu", name + "_*.cu"],
        exclude = not_ours + [source for sources in own.values() for source in sources] + replaced,
    )

    # Which sources are compiled for which targets, and with what. In the linker's
    # order: a target's own sources may call the ones that all targets share.
    groups = [
        (target, own[target], [t for t in targets if t == target], sm100a_deps if target == "sm_100a" else [])
        for target in own
    ] + [
        ("replaced_" + source[:-len(".cu")], [source], [
            t
            for t in targets
            if source not in replaces.get(t, [])
        ], [])
        for source in replaced
    ] + [("shared", portable, targets, [])]
    all_deps = deps + ["//kernels/base"]
    cuda_libraries = []
    for part, sources, served, cuda_deps in groups:
        if sources and served:
            library = name + "_cuda_" + part
            cuda_library(
                name = library,
                srcs = sources,
                hdrs = headers,
                targets = served,
                deps = all_deps + ["//kernels/device"] + select({
                    "//tools/build:with_sm_100a": cuda_deps,
                    "//conditions:default": [],
                }),
                visibility = ["//visibility:private"],
            )
            cuda_libraries.append(library)

    built = ["cpu"]
    defines = []
    if cuda_libraries:
        for target in targets:
            condition = "//tools/build:with_" + target
            built = built + select({condition: [target], "//conditions:default": []})
            defines = defines + select({
                condition: ["SGL_HAS_" + target.upper()],
                "//conditions:default": [],
            })
    kernel_targets(
        name = name + "_targets",
        header = native.glob([name + ".h"]),
        targets = built,
        visibility = ["//visibility:public"],
    )
    native.cc_library(
        name = name,
        srcs = native.glob([name + ".cc", name + "_*.cc"], exclude = not_ours),
        hdrs = headers,
        copts = _COPTS + copts,
        linkstatic = True,
        local_defines = defines,
        deps = all_deps + cuda_libraries,
        **kwargs
    )

def kernel_family(name, concepts):
    """All concepts of a folder: what a program or a Python module links.

    Args:
      name: the name of the folder.
      concepts: its kernel_library targets.
    """
    native.cc_library(
        name = name,
        linkstatic = True,
        visibility = ["//visibility:public"],
        deps = concepts,
    )
    kernel_targets(
        name = name + "_targets",
        concepts = [concept + "_targets" for concept in concepts],
        visibility = ["//visibility:public"],
    )
