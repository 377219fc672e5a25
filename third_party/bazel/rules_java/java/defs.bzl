"""The rules of rules_java that Bazel's own packages load: the native ones."""

java_import = native.java_import
java_runtime = native.java_runtime
java_toolchain = native.java_toolchain
