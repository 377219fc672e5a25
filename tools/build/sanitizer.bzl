"""How Python loads modules that are built with a sanitizer."""

# Shell lines by --config; "" is neither. Python itself is not instrumented: the
# runtime has to come first, and cannot tell what the interpreter leaks.
SANITIZER_ENVIRONMENT = {
    "asan": """export LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libstdc++.so)"
export ASAN_OPTIONS=detect_leaks=0""",
    "ubsan": """export LD_PRELOAD="$(gcc -print-file-name=libubsan.so)"
export UBSAN_OPTIONS=print_stacktrace=1""",
    "": "",
}

def select_sanitizer(values):
    """Picks, from a dict with the keys of SANITIZER_ENVIRONMENT, by --config."""
    return select({
        "//tools/build:" + config if config else "//conditions:default": value
        for config, value in values.items()
    })
