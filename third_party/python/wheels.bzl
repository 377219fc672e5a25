"""Repositories made of wheels: pinned by hash, fetched by pip, unzipped."""

load(":interpreter.bzl", "find_python")

# One set of tags whatever interpreter fetches, so that the hashes always match.
_TAGS = [
    "--python-version=3.11",
    "--implementation=cp",
    "--abi=cp311",
    "--abi=none",
    "--platform=manylinux_2_28_x86_64",
    "--platform=manylinux2014_x86_64",
]

def fetch_wheels(ctx, wheels, strip_prefix = ""):
    """Unzips wheels into the repository.

    Args:
      ctx: the repository rule's context.
      wheels: a dict of "name==version" to the wheel's SHA-256.
      strip_prefix: the folder inside the wheels to take.
    """
    python = find_python(ctx)
    if ctx.execute([python, "-m", "pip", "--version"]).return_code != 0:
        fail("%s has no pip: install python3-pip" % python)
    for wheel, sha256 in wheels.items():
        ctx.file("wheel.txt", "%s --hash=sha256:%s\n" % (wheel, sha256))
        ctx.report_progress("Fetching %s" % wheel)
        result = ctx.execute([
            python,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--only-binary=:all:",
            "--require-hashes",
            "--retries=2",
            "--dest=wheel",
            "--requirement=wheel.txt",
        ] + _TAGS, timeout = 1800)
        if result.return_code != 0:
            fail(_reason(wheel, result.stderr))

        # Bazel tells an archive's type by its name.
        file = ctx.path("wheel").readdir()[0]
        ctx.symlink(file, "wheel.zip")
        ctx.extract("wheel.zip", stripPrefix = strip_prefix)
        ctx.delete("wheel.zip")
        ctx.delete("wheel")
    ctx.delete("wheel.txt")

def _reason(wheel, log):
    if "DO NOT MATCH THE HASHES" in log:
        return "%s: the package index serves another file than the one that is pinned" % wheel
    if "No matching distribution" in log or "Max retries" in log:
        return "%s: the package index is out of reach or does not have it" % wheel
    return "%s: pip failed: %s" % (wheel, log.strip().split("\n")[-1])

def _wheel_repository_impl(ctx):
    fetch_wheels(ctx, ctx.attr.wheels, ctx.attr.strip_prefix)
    ctx.symlink(ctx.attr.build_file, "BUILD")

wheel_repository = repository_rule(
    implementation = _wheel_repository_impl,
    attrs = {
        "build_file": attr.label(allow_single_file = True, mandatory = True),
        "strip_prefix": attr.string(),
        "wheels": attr.string_dict(mandatory = True),
    },
    doc = "The contents of pinned wheels, with a BUILD file of ours.",
)
