"""The Python that wheels are built for, and the environment that tests run in."""

load(":interpreter.bzl", "ask_python", "find_python", "last_line")

_DESCRIBE = """
import os, sys, sysconfig
include = sysconfig.get_path("include")
assert os.path.exists(os.path.join(include, "Python.h")), "no Python.h in " + include + ": install python3-dev"
print(include, "cp%d%d" % sys.version_info[:2])
"""

def _python_headers_impl(ctx):
    python = find_python(ctx)
    include, tag = ask_python(ctx, python, _DESCRIBE).split(" ")
    ctx.symlink(include, "include")
    ctx.file("defs.bzl", "PYTHON = %r\nPYTHON_TAG = %r\n" % (python, tag))
    ctx.file("BUILD", """
cc_library(
    name = "headers",
    hdrs = glob(["include/**/*.h"]),
    includes = ["include"],
    visibility = ["//visibility:public"],
)
""")

python_headers = repository_rule(
    implementation = _python_headers_impl,
    configure = True,
    environ = ["PYTHON_BIN_PATH"],
    doc = """
The headers of the interpreter, and in defs.bzl its path (PYTHON) and the tag of
the wheels it takes (PYTHON_TAG, as cp311).
""",
)

def _python_environment_impl(ctx):
    python = find_python(ctx)
    if ctx.execute([python, "-m", "venv", "venv"]).return_code != 0:
        fail("%s cannot make a virtual environment: install python3-venv" % python)
    ctx.report_progress("Installing the packages that tests need")
    result = ctx.execute([
        "venv/bin/python3",
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-compile",
        "--retries=2",
        "--requirement",
        ctx.path(ctx.attr.requirements),
    ], timeout = 3600)
    if result.return_code != 0:
        fail("pip cannot install %s: %s" % (ctx.attr.requirements, last_line(result.stderr)))

    # Tests depend on this list, not on the thousands of files behind it.
    installed = ctx.execute(["venv/bin/python3", "-m", "pip", "freeze"])
    ctx.file("installed.txt", installed.stdout)
    path = str(ctx.path("venv/bin/python3"))
    ctx.file("defs.bzl", "PYTHON = %r\n" % path)
    ctx.file("BUILD", """
load("@bazel_tools//tools/python:toolchain.bzl", "py_runtime_pair")

exports_files(["installed.txt"])

py_runtime(
    name = "runtime",
    interpreter_path = %r,
    python_version = "PY3",
    # Bazel's default asks for `python`, a name that not every Debian has.
    stub_shebang = "#!/usr/bin/env python3",
)

py_runtime_pair(
    name = "runtime_pair",
    py3_runtime = ":runtime",
    visibility = ["//visibility:public"],
)
""" % path)

python_environment = repository_rule(
    implementation = _python_environment_impl,
    attrs = {"requirements": attr.label(allow_single_file = True, mandatory = True)},
    configure = True,
    environ = ["PYTHON_BIN_PATH"],
    doc = "A virtual environment with pinned packages: in defs.bzl its PYTHON.",
)
