"""pytest_test: Python tests, in the environment of third_party/python."""

load("@python_environment//:defs.bzl", "PYTHON")
load(":sanitizer.bzl", "SANITIZER_ENVIRONMENT", "select_sanitizer")

_LAUNCHER = """#!/bin/bash
# Imports resolve as they do in a checkout: the repository's root and python/.
export PYTHONPATH={imports}
export PYTHONDONTWRITEBYTECODE=1
{environment}
{sanitizer}
# Without a plugin that writes next to the tests: runfiles are read-only.
exec {python} -m pytest -p no:cacheprovider -q -rs \\
  --junitxml="${{XML_OUTPUT_FILE:-/dev/null}}" {args} "$@" {srcs}
"""

def _pytest_test_impl(ctx):
    root = "$PWD"
    imports = [root] + [
        # PyInfo's paths begin with a repository's name, beside this one's.
        "%s/../%s" % (root, path)
        for path in depset(transitive = [
            dep[PyInfo].imports
            for dep in ctx.attr.deps
            if PyInfo in dep
        ]).to_list()
    ]
    launcher = ctx.actions.declare_file(ctx.label.name)
    ctx.actions.write(
        launcher,
        _LAUNCHER.format(
            args = " ".join(ctx.attr.pytest_args),
            environment = "\n".join(["export %s=%s" % pair for pair in ctx.attr.environment.items()]),
            imports = ":".join(imports),
            python = PYTHON,
            sanitizer = SANITIZER_ENVIRONMENT[ctx.attr.sanitizer],
            srcs = " ".join([src.short_path for src in ctx.files.srcs]),
        ),
        is_executable = True,
    )
    runfiles = ctx.runfiles(files = ctx.files.srcs + ctx.files.data + ctx.files._environment)
    for dep in ctx.attr.deps + ctx.attr.data:
        runfiles = runfiles.merge(dep[DefaultInfo].default_runfiles)
    return [DefaultInfo(executable = launcher, runfiles = runfiles)]

_pytest_test = rule(
    implementation = _pytest_test_impl,
    attrs = {
        "data": attr.label_list(allow_files = True),
        "deps": attr.label_list(),
        "environment": attr.string_dict(),
        "pytest_args": attr.string_list(),
        "sanitizer": attr.string(),
        "srcs": attr.label_list(allow_files = [".py"], mandatory = True),
        "_environment": attr.label(default = "@python_environment//:installed.txt", allow_single_file = True),
    },
    test = True,
)

def indices_checked_test(name, **kwargs):
    """The GPU tests of a file once more, where what index tensors hold is looked at.

    Args:
      name: the name.
      **kwargs: pytest_test's.
    """
    pytest_test(
        name = name,
        environment = {"SGL_KERNEL_CHECK": "1"},
        pytest_args = [
            "-m",
            "cuda",
        ],
        **kwargs
    )

def plain_loops_test(name, **kwargs):
    """A file's tests with the loops for CPUs without AVX2.

    Args:
      name: the name.
      **kwargs: pytest_test's.
    """
    pytest_test(
        name = name,
        environment = {"SGL_KERNEL_AVX2": "0"},
        **kwargs
    )

def pytest_test(name, srcs, deps = [], **kwargs):
    """Runs files of Python tests.

    A file with no test in it fails. Write `--test_arg=-k --test_arg=name` to run
    one test of a file.

    Args:
      name: the name.
      srcs: the files.
      deps: py_library targets, as //python:sgl_kernel.
      **kwargs: data, environment (variables of the tests), pytest_args, size, tags and the like.
    """
    _pytest_test(
        name = name,
        srcs = srcs,
        deps = deps,
        sanitizer = select_sanitizer({config: config for config in SANITIZER_ENVIRONMENT}),
        **kwargs
    )
