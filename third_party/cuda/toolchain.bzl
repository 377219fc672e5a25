"""The toolchain that compiles CUDA sources for one SM target."""

load(":targets.bzl", "GENCODE", "SM_TARGETS")

def _cuda_toolchain_impl(ctx):
    return [platform_common.ToolchainInfo(
        target = ctx.attr.target,
        gencode = GENCODE.get(ctx.attr.target),
        nvcc = ctx.file.nvcc,
        files = depset(ctx.files.files),
    )]

_cuda_toolchain = rule(
    implementation = _cuda_toolchain_impl,
    attrs = {
        "files": attr.label_list(allow_files = True, cfg = "exec"),
        "nvcc": attr.label(allow_single_file = True, cfg = "exec"),
        "target": attr.string(mandatory = True),
    },
)

def cuda_targets(name):
    """Declares a constraint value, a platform, a flag and a toolchain for each target.

    The flag says whether the target is built. A platform that names no SM has the
    target "cpu", whose toolchain compiles nothing.

    Args:
      name: the name of the constraint setting.
    """
    native.constraint_setting(
        name = name,
        default_constraint_value = ":cpu",
    )
    native.constraint_value(
        name = "cpu",
        constraint_setting = name,
    )
    native.platform(
        name = "cpu_platform",
        constraint_values = [":cpu"],
        parents = ["@local_config_platform//:host"],
    )
    _cuda_toolchain(
        name = "nothing",
        target = "cpu",
    )
    native.toolchain(
        name = "toolchain_cpu",
        target_compatible_with = [":cpu"],
        toolchain = ":nothing",
        toolchain_type = ":toolchain_type",
    )
    for target in SM_TARGETS:
        native.constraint_value(
            name = target + "_constraint",
            constraint_setting = name,
        )
        native.platform(
            name = target + "_platform",
            constraint_values = [target + "_constraint"],
            parents = ["@local_config_platform//:host"],
        )
        _cuda_toolchain(
            name = "nvcc_" + target,
            files = ["@cuda//:compiler"],
            nvcc = "@cuda//:bin/nvcc",
            target = target,
        )
        native.toolchain(
            name = "toolchain_" + target,
            target_compatible_with = [target + "_constraint"],
            toolchain = "nvcc_" + target,
            toolchain_type = ":toolchain_type",
        )
