"""What a wheel is made of besides sources, and the wheel."""

load("@bazel_tools//tools/cpp:toolchain_utils.bzl", "find_cpp_toolchain")
load("@bazel_tools//tools/build_defs/cc:action_names.bzl", "CPP_COMPILE_ACTION_NAME")
load("@python//:defs.bzl", "PYTHON", "PYTHON_TAG")
load("//tools/build:kernel_targets.bzl", "KernelTargetsInfo")
load("//tools/build:sanitizer.bzl", "SANITIZER_ENVIRONMENT", "select_sanitizer")

def package_index(name, natives, modules, index, stub):
    """What a package knows of its modules before it loads them, and its stub.

    Args:
      name: the name.
      natives: kernel_module targets.
      modules: the package's .py files.
      index: the Python module to write.
      stub: the .pyi file to write.
    """
    tool = "//python:write_index.py"
    command = " ".join([
        PYTHON,
        "$(location %s)" % tool,
        "--index $(location %s)" % index,
        "--stub $(location %s)" % stub,
        "--native " + " ".join(["$(location %s)" % native for native in natives]),
        "--module " + " ".join(["$(location %s)" % module for module in modules]),
    ])
    native.genrule(
        name = name,
        srcs = natives + modules,
        outs = [index, stub],
        cmd = select_sanitizer({
            config: environment.replace("$(", "$$(") + "\n" + command
            for config, environment in SANITIZER_ENVIRONMENT.items()
        }),
        tools = [tool],
    )

def _build_info_impl(ctx):
    cc_toolchain = find_cpp_toolchain(ctx)
    features = cc_common.configure_features(
        ctx = ctx,
        cc_toolchain = cc_toolchain,
        requested_features = ctx.features,
        unsupported_features = ctx.disabled_features,
    )
    concepts = depset(transitive = [
        family[KernelTargetsInfo].concepts
        for family in ctx.attr.families
    ]).to_list()
    args = ctx.actions.args()
    args.add(ctx.file._tool)
    args.add(ctx.outputs.out)
    args.add(ctx.attr.version, format = "--version=%s")
    args.add(cc_common.get_tool_for_action(
        feature_configuration = features,
        action_name = CPP_COMPILE_ACTION_NAME,
    ), format = "--compiler=%s")
    args.add_all(ctx.files.cuda_version, format_each = "--cuda=%s")
    for concept in concepts:
        args.add("--concept=%s=%s" % (concept.header.path, ",".join(concept.targets)))
    ctx.actions.run(
        executable = PYTHON,
        arguments = [args],
        inputs = depset(
            [ctx.file._tool] + ctx.files.cuda_version + [concept.header for concept in concepts],
            transitive = [cc_toolchain.all_files],
        ),
        outputs = [ctx.outputs.out],
        env = {"PATH": "/usr/bin:/bin"},
        mnemonic = "BuildInfo",
    )

_build_info = rule(
    implementation = _build_info_impl,
    attrs = {
        "cuda_version": attr.label_list(allow_files = True),
        "families": attr.label_list(providers = [KernelTargetsInfo]),
        "out": attr.output(mandatory = True),
        "version": attr.string(mandatory = True),
        "_cc_toolchain": attr.label(default = "@bazel_tools//tools/cpp:current_cc_toolchain"),
        "_tool": attr.label(default = "//tools/wheel:write_build_info.py", allow_single_file = True),
    },
    fragments = ["cpp"],
)

def build_info(name, out, version, families):
    """A Python module that says what a package was built from.

    Args:
      name: the name.
      out: the file to write.
      version: of the distribution.
      families: the kernel_targets of its families, as //kernels/gemm:gemm_targets.
    """
    _build_info(
        name = name,
        out = out,
        cuda_version = select({
            "//tools/build:with_cuda": ["@cuda//:version.txt"],
            "//conditions:default": [],
        }),
        families = families,
        version = version,
    )

def _as_argument(file):
    return "--file=%s=%s" % (file.path, file.short_path)

def _wheel_impl(ctx):
    files = depset(transitive = [
        ctx.attr.package[DefaultInfo].files,
        ctx.attr.package[DefaultInfo].default_runfiles.files,
    ])
    args = ctx.actions.args()
    args.add(ctx.file._tool)
    args.add(ctx.outputs.out)
    args.add(ctx.attr.distribution, format = "--distribution=%s")
    args.add(ctx.attr.version, format = "--version=%s")
    args.add(ctx.attr.tag, format = "--tag=%s")
    args.add(ctx.attr.summary, format = "--summary=%s")
    args.add(ctx.file.license, format = "--license=%s")
    args.add(ctx.label.package + "/", format = "--strip_prefix=%s")
    args.add_all(files, map_each = _as_argument)
    ctx.actions.run(
        executable = PYTHON,
        arguments = [args],
        inputs = depset([ctx.file._tool, ctx.file.license], transitive = [files]),
        outputs = [ctx.outputs.out],
        mnemonic = "Wheel",
        progress_message = "Packing %s" % ctx.outputs.out.basename,
    )
    return [DefaultInfo(files = depset([ctx.outputs.out]))]

_wheel = rule(
    implementation = _wheel_impl,
    attrs = {
        "distribution": attr.string(mandatory = True),
        "license": attr.label(allow_single_file = True, mandatory = True),
        "out": attr.output(mandatory = True),
        "package": attr.label(providers = [PyInfo], mandatory = True),
        "summary": attr.string(mandatory = True),
        "tag": attr.string(mandatory = True),
        "version": attr.string(mandatory = True),
        "_tool": attr.label(default = "//tools/wheel:write_wheel.py", allow_single_file = True),
    },
)

def wheel(name, distribution, version, **kwargs):
    """A wheel for the interpreter of third_party/python: the same bytes for the same sources.

    Args:
      name: the name.
      distribution: what pip calls it, as sgl-kernel.
      version: its version.
      **kwargs: package, the py_library, whose files lie below this folder; summary,
        license, visibility and the like.
    """
    tag = "%s-%s-linux_x86_64" % (PYTHON_TAG, PYTHON_TAG)
    _wheel(
        name = name,
        distribution = distribution,
        out = "%s-%s-%s.whl" % (distribution.replace("-", "_"), version, tag),
        tag = tag,
        version = version,
        **kwargs
    )
