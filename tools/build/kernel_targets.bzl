"""kernel_targets: which operators there are, and what each is compiled for."""

KernelTargetsInfo = provider(
    doc = "The operators of some concepts and their targets.",
    fields = {
        "concepts": "a depset of struct(header, targets): the header declares the operators",
    },
)

def _kernel_targets_impl(ctx):
    own = [struct(header = header, targets = ctx.attr.targets) for header in ctx.files.header]
    return [
        DefaultInfo(files = depset(ctx.files.header)),
        KernelTargetsInfo(concepts = depset(
            own,
            transitive = [concept[KernelTargetsInfo].concepts for concept in ctx.attr.concepts],
        )),
    ]

kernel_targets = rule(
    implementation = _kernel_targets_impl,
    attrs = {
        "concepts": attr.label_list(providers = [KernelTargetsInfo]),
        "header": attr.label_list(allow_files = [".h"]),
        "targets": attr.string_list(doc = "Those that are built, cpu among them."),
    },
    doc = "kernel_library and kernel_family declare it: <name>_targets.",
)
