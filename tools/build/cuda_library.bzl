"""cuda_library: CUDA sources, compiled once for each SM target that is built."""

load("@bazel_tools//tools/cpp:toolchain_utils.bzl", "find_cpp_toolchain")
load("@bazel_tools//tools/build_defs/cc:action_names.bzl", "CPP_COMPILE_ACTION_NAME")
load("//third_party/cuda:targets.bzl", "SM_TARGETS", "check_targets")

_TOOLCHAIN_TYPE = "//third_party/cuda:toolchain_type"
_PLATFORMS = "//command_line_option:platforms"

_NVCC_FLAGS = [
    "-std=c++20",
    "-O3",
    "-DNDEBUG",
    "--expt-relaxed-constexpr",
    # Small binaries: the wheel holds every target.
    "--compress-mode=size",
    # Temporary files next to the object, named after it: the same bytes each
    # time, and no two actions write one file.
    "--objdir-as-tempdir",
    "-Xptxas=--warn-on-spills",
    "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall",
]

def _features(ctx, cc_toolchain):
    return cc_common.configure_features(
        ctx = ctx,
        cc_toolchain = cc_toolchain,
        requested_features = ctx.features,
        unsupported_features = ctx.disabled_features,
    )

def _cuda_objects_impl(ctx):
    cuda = ctx.toolchains[_TOOLCHAIN_TYPE]
    if not cuda.nvcc:
        return [DefaultInfo(files = depset())]
    cc_toolchain = find_cpp_toolchain(ctx)
    host_compiler = cc_common.get_tool_for_action(
        feature_configuration = _features(ctx, cc_toolchain),
        action_name = CPP_COMPILE_ACTION_NAME,
    )
    context = cc_common.merge_cc_infos(
        cc_infos = [dep[CcInfo] for dep in ctx.attr.deps],
    ).compilation_context

    args = ctx.actions.args()
    args.add("-ccbin", host_compiler)
    args.add("-gencode", cuda.gencode)
    args.add_all(_NVCC_FLAGS)
    args.add(cuda.target, format = "-DSGL_TARGET=%s")
    args.add_all(context.defines, format_each = "-D%s")
    args.add_all(context.quote_includes, format_each = "-I%s")
    args.add_all(context.includes, format_each = "-I%s")
    args.add_all(context.system_includes, before_each = "-isystem")
    args.add_all(ctx.attr.copts)

    objects = []
    for src in ctx.files.srcs:
        name = "_objs/%s/%s.%s.pic.o" % (ctx.label.name, src.basename[:-len(".cu")], cuda.target)
        object = ctx.actions.declare_file(name)
        own = ctx.actions.args()
        own.add("-c", src)
        own.add("-o", object)
        ctx.actions.run(
            executable = cuda.nvcc,
            arguments = [args, own],
            inputs = depset(
                [src] + ctx.files.hdrs,
                transitive = [context.headers, cuda.files, cc_toolchain.all_files],
            ),
            outputs = [object],
            env = {
                "PATH": "/usr/bin:/bin",
                "TMPDIR": object.dirname,
            },
            mnemonic = "CudaCompile",
            progress_message = "Compiling %s for %s" % (src.short_path, cuda.target),
        )
        objects.append(object)
    return [DefaultInfo(files = depset(objects))]

_COMPILE_ATTRS = {
    "copts": attr.string_list(doc = "Further flags for nvcc."),
    "deps": attr.label_list(providers = [CcInfo]),
    "hdrs": attr.label_list(allow_files = [".h", ".cuh"]),
    "_cc_toolchain": attr.label(default = "@bazel_tools//tools/cpp:current_cc_toolchain"),
}

_cuda_objects = rule(
    implementation = _cuda_objects_impl,
    attrs = dict(
        _COMPILE_ATTRS,
        srcs = attr.label_list(allow_files = [".cu"]),
    ),
    fragments = ["cpp"],
    toolchains = [_TOOLCHAIN_TYPE],
)

def _flag(target):
    return "//tools/build:" + target

def _each_target_impl(settings, attr):
    # Without an SM target, too, a platform of its own: the same one again would
    # be another configuration with the same output folder.
    built = [target for target in attr.targets if settings[_flag(target)]] or ["cpu"]
    return {
        target: {_PLATFORMS: "//third_party/cuda:%s_platform" % target}
        for target in built
    }

_each_target = transition(
    implementation = _each_target_impl,
    inputs = [_flag(target) for target in SM_TARGETS],
    outputs = [_PLATFORMS],
)

def _cuda_library_impl(ctx):
    cc_toolchain = find_cpp_toolchain(ctx)
    objects = depset(transitive = [
        target[DefaultInfo].files
        for target in ctx.split_attr.objects.values()
    ])
    linking_context, _ = cc_common.create_linking_context_from_compilation_outputs(
        name = ctx.label.name,
        actions = ctx.actions,
        feature_configuration = _features(ctx, cc_toolchain),
        cc_toolchain = cc_toolchain,
        compilation_outputs = cc_common.create_compilation_outputs(
            objects = objects,
            pic_objects = objects,
        ),
        linking_contexts = [dep[CcInfo].linking_context for dep in ctx.attr.deps],
        disallow_dynamic_library = True,
    )
    compilation_context = cc_common.merge_cc_infos(
        cc_infos = [dep[CcInfo] for dep in ctx.attr.deps],
    ).compilation_context
    return [
        DefaultInfo(files = objects),
        CcInfo(
            compilation_context = compilation_context,
            linking_context = linking_context,
        ),
    ]

_cuda_library = rule(
    implementation = _cuda_library_impl,
    attrs = {
        "deps": attr.label_list(providers = [CcInfo]),
        "objects": attr.label(cfg = _each_target),
        "targets": attr.string_list(),
        "_allowlist_function_transition": attr.label(
            default = "@bazel_tools//tools/allowlists/function_transition_allowlist",
        ),
        "_cc_toolchain": attr.label(default = "@bazel_tools//tools/cpp:current_cc_toolchain"),
    },
    fragments = ["cpp"],
)

def cuda_library(name, srcs, hdrs = [], deps = [], copts = [], targets = SM_TARGETS, **kwargs):
    """A library that C++ can depend on, with its sources' code for each SM target.

    Args:
      name: the name.
      srcs: .cu files. SGL_TARGET is defined as the target, as sm_90a: it names
        the namespace in which a source defines what it exports.
      hdrs: headers that only these sources include.
      deps: C++ libraries.
      copts: further flags for nvcc.
      targets: the SM targets that the sources serve. What is built is those of
        them that the command line asks for; without any, the library is empty.
      **kwargs: visibility, tags and the like.
    """
    check_targets(name, targets)
    cuda = select({
        "//tools/build:with_cuda": ["@cuda//:runtime"],
        "//conditions:default": [],
    })
    _cuda_objects(
        name = name + "_objects",
        srcs = srcs,
        hdrs = hdrs,
        copts = copts,
        deps = deps + cuda,
        # Only what cuda_library asks for, in the configurations it asks for.
        tags = ["manual"],
    )
    _cuda_library(
        name = name,
        deps = deps + cuda,
        objects = name + "_objects",
        targets = targets,
        **kwargs
    )
