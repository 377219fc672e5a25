"""sdk: the families as static libraries, for programs that do not use Bazel."""

load("@bazel_tools//tools/cpp:toolchain_utils.bzl", "find_cpp_toolchain")
load("@bazel_tools//tools/build_defs/cc:action_names.bzl", "CPP_LINK_STATIC_LIBRARY_ACTION_NAME")
load("@python//:defs.bzl", "PYTHON")
load(":kernel_targets.bzl", "KernelTargetsInfo")

def _sdk_impl(ctx):
    cc_toolchain = find_cpp_toolchain(ctx)
    features = cc_common.configure_features(
        ctx = ctx,
        cc_toolchain = cc_toolchain,
        requested_features = ctx.features,
        unsupported_features = ctx.disabled_features,
    )
    args = ctx.actions.args()
    args.add(ctx.file._tool)
    args.add(ctx.outputs.out)
    args.add(ctx.attr.version, format = "--version=%s")
    args.add(cc_common.get_tool_for_action(
        feature_configuration = features,
        action_name = CPP_LINK_STATIC_LIBRARY_ACTION_NAME,
    ), format = "--ar=%s")

    # The base is a library of its own: all families share its objects.
    base = ctx.attr.base[CcInfo]
    base_owners = [item.owner for item in base.linking_context.linker_inputs.to_list()]
    archives = {"base": [
        item
        for item in base.linking_context.linker_inputs.to_list()
        if item.owner == ctx.attr.base.label
    ]}
    for family in ctx.attr.families:
        archives[family.label.name] = [
            item
            for item in family[CcInfo].linking_context.linker_inputs.to_list()
            if item.owner not in base_owners
        ]
    inputs = []
    for archive, linker_inputs in archives.items():
        for item in linker_inputs:
            for library in item.libraries:
                inputs += library.pic_objects
                for object in library.pic_objects:
                    args.add("--object=%s=%s" % (archive, object.path))

    # What the base links of others: the CUDA runtime, if there is CUDA.
    for item in base.linking_context.linker_inputs.to_list():
        if item.owner != ctx.attr.base.label:
            for library in item.libraries:
                file = library.pic_static_library or library.static_library
                inputs.append(file)
                args.add(file, format = "--library=%s")

    headers = [
        header
        for header in base.compilation_context.direct_public_headers
    ] + [
        concept.header
        for targets in ctx.attr.targets
        for concept in targets[KernelTargetsInfo].concepts.to_list()
    ]
    args.add_all(headers, format_each = "--header=%s")
    args.add(ctx.file.license, format = "--license=%s")
    ctx.actions.run(
        executable = PYTHON,
        arguments = [args],
        inputs = depset(
            inputs + headers + [ctx.file._tool, ctx.file.license],
            transitive = [cc_toolchain.all_files],
        ),
        outputs = [ctx.outputs.out],
        env = {"PATH": "/usr/bin:/bin"},
        mnemonic = "Sdk",
        progress_message = "Packing %s" % ctx.outputs.out.basename,
    )
    return [DefaultInfo(files = depset([ctx.outputs.out]))]

_sdk = rule(
    implementation = _sdk_impl,
    attrs = {
        "base": attr.label(providers = [CcInfo], mandatory = True),
        "families": attr.label_list(providers = [CcInfo]),
        "license": attr.label(allow_single_file = True, mandatory = True),
        "out": attr.output(mandatory = True),
        "targets": attr.label_list(providers = [KernelTargetsInfo]),
        "version": attr.string(mandatory = True),
        "_cc_toolchain": attr.label(default = "@bazel_tools//tools/cpp:current_cc_toolchain"),
        "_tool": attr.label(default = "//tools/build:write_sdk.py", allow_single_file = True),
    },
    fragments = ["cpp"],
)

def sdk(name, families, **kwargs):
    """<name>.tar.gz: include/, lib/ and a CMake package.

    Args:
      name: the name.
      families: the names of the families.
      **kwargs: base, the library that all of them need; license, version,
        visibility and the like.
    """
    _sdk(
        name = name,
        families = ["//kernels/" + family for family in families],
        out = name + ".tar.gz",
        targets = ["//kernels/%s:%s_targets" % (family, family) for family in families],
        **kwargs
    )
