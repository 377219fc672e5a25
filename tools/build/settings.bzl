"""The flags that say which SM targets are built."""

load("//third_party/cuda:targets.bzl", "SM_TARGETS")

BuiltInfo = provider(
    doc = "Whether an SM target is built.",
    fields = ["value"],
)

def _sm_flag_impl(ctx):
    return [BuiltInfo(value = ctx.build_setting_value)]

_sm_flag = rule(
    implementation = _sm_flag_impl,
    build_setting = config.bool(flag = True),
)

def _any_built_impl(ctx):
    built = any([flag[BuiltInfo].value for flag in ctx.attr.flags])
    return [config_common.FeatureFlagInfo(value = "yes" if built else "no")]

_any_built = rule(
    implementation = _any_built_impl,
    attrs = {"flags": attr.label_list(providers = [BuiltInfo])},
)

def sm_flags():
    """Declares a flag sm_X and a condition with_sm_X for each target, and with_cuda."""
    for target in SM_TARGETS:
        _sm_flag(
            name = target,
            build_setting_default = False,
        )
        native.config_setting(
            name = "with_" + target,
            flag_values = {target: "True"},
        )
    _any_built(
        name = "any_sm",
        flags = SM_TARGETS,
    )
    native.config_setting(
        name = "with_cuda",
        flag_values = {"any_sm": "yes"},
    )
