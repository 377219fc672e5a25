"""Which Python the repository rules use."""

def find_python(ctx):
    """Returns the real path of PYTHON_BIN_PATH, or else of the PATH's python3."""
    name = ctx.os.environ.get("PYTHON_BIN_PATH") or "python3"
    found = ctx.path(name) if name.startswith("/") else ctx.which(name)
    if not found or not found.exists:
        fail("no Python interpreter at %s: install python3 or set PYTHON_BIN_PATH" % name)

    # What is on the PATH may be a version manager's script: ask where it leads.
    return ask_python(ctx, found, "import sys; print(sys.executable)")

def ask_python(ctx, python, program):
    """Returns what `program` prints."""
    result = ctx.execute([python, "-c", program])
    if result.return_code != 0:
        fail("%s does not run: %s" % (python, last_line(result.stderr)))
    return result.stdout.strip()

def last_line(text):
    return text.strip().split("\n")[-1]
