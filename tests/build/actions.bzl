"""actions_test: how the sources of a cuda_library are compiled."""

load("//third_party/cuda:targets.bzl", "SM_TARGETS")
load("//tools/build:settings.bzl", "BuiltInfo")

_CompilesInfo = provider(
    doc = "The CudaCompile actions of a target and its deps.",
    fields = ["actions"],
)

def _compiles_impl(target, ctx):
    before = []
    for name in ["deps", "objects"]:
        value = getattr(ctx.rule.attr, name, [])
        for dep in value if type(value) == "list" else [value]:
            if _CompilesInfo in dep:
                before.append(dep[_CompilesInfo].actions)
    own = [action for action in target.actions if action.mnemonic == "CudaCompile"]
    return [_CompilesInfo(actions = depset(own, transitive = before))]

_compiles = aspect(
    implementation = _compiles_impl,
    attr_aspects = ["deps", "objects"],
)

# Written out here once more: what nvcc is told is what the test is about.
_GENCODE = {
    "sm_80": "arch=compute_80,code=[compute_80,sm_80]",
    "sm_89": "arch=compute_89,code=[compute_89,sm_89]",
    "sm_90a": "arch=compute_90a,code=sm_90a",
    "sm_100a": "arch=compute_100a,code=sm_100a",
    "sm_120a": "arch=compute_120a,code=sm_120a",
}

def _after(argv, flag):
    """The argument after `flag`."""
    return argv[argv.index(flag) + 1]

def _check_action(argv, env, source, target):
    """What is wrong with a compile action."""
    wrong = []
    if not argv[0].startswith("external/cuda/"):
        wrong.append("runs %s, which is not the pinned nvcc" % argv[0])
    if _after(argv, "-gencode") != _GENCODE[target]:
        wrong.append("has -gencode %s" % _after(argv, "-gencode"))
    if "-DSGL_TARGET=" + target not in argv:
        wrong.append("does not define SGL_TARGET as %s" % target)
    if "--compress-mode=size" not in argv:
        wrong.append("does not compress")
    for argument in argv:
        if "/usr/local" in argument:
            wrong.append("is given %s, which is the machine's" % argument)
    if env != {"PATH": "/usr/bin:/bin", "TMPDIR": _after(argv, "-o").rpartition("/")[0]}:
        wrong.append("has the environment %s" % env)
    return ["%s for %s: %s" % (source, target, text) for text in wrong]

def _actions_test_impl(ctx):
    built = [flag.label.name for flag in ctx.attr.flags if flag[BuiltInfo].value]
    expected = {}
    for source, targets in ctx.attr.expected.items():
        for target in targets:
            if target in built:
                expected[(source, target)] = True

    wrong = []
    found = {}
    for action in ctx.attr.target[_CompilesInfo].actions.to_list():
        argv = action.argv
        source = _after(argv, "-c").rpartition("/")[2]
        target = [a for a in argv if a.startswith("-DSGL_TARGET=")][0].partition("=")[2]
        if (source, target) in found:
            wrong.append("%s is compiled twice for %s" % (source, target))
        found[(source, target)] = True
        wrong += _check_action(argv, action.env, source, target)
    for pair in expected:
        if pair not in found:
            wrong.append("%s is not compiled for %s" % pair)
    for pair in found:
        if pair not in expected:
            wrong.append("%s is compiled for %s" % pair)
    return [AnalysisTestResultInfo(
        success = not wrong,
        message = "\n".join(wrong or ["%d actions" % len(found)]),
    )]

actions_test = rule(
    implementation = _actions_test_impl,
    attrs = {
        "expected": attr.string_list_dict(doc = "The SM targets that each source is compiled for."),
        "flags": attr.label_list(
            default = ["//tools/build:" + target for target in SM_TARGETS],
            providers = [BuiltInfo],
        ),
        "target": attr.label(aspects = [_compiles], mandatory = True),
    },
    analysis_test = True,
    doc = """
Checks, of the SM targets that are built, that each source is compiled once for
each that it serves and for no other, and with what.
""",
)
