"""Packs headers, static libraries and a CMake package. The same files give the same bytes.

    write_sdk.py OUTPUT --version=V --ar=AR --license=LICENSE --header=kernels/base/status.h ...
        --object=norm=norm.pic.o ... --library=libcudart_static.a ...

An archive is made of the objects of each name; all of them link `base`, and `base` links the libraries.
"""

import argparse
import gzip
import io
import pathlib
import subprocess
import tarfile
import tempfile

_ROOT = "sgl_kernel"
_PACKAGE = "lib/cmake/sgl_kernel"

_CONFIG = """\
# find_package(sgl_kernel) defines {targets}.
include(CMakeFindDependencyMacro)
find_dependency(Threads)

get_filename_component(_sgl_kernel_root "${{CMAKE_CURRENT_LIST_DIR}}/../../.." ABSOLUTE)

if(NOT TARGET sgl_kernel::base)
  add_library(sgl_kernel::base STATIC IMPORTED)
  set_target_properties(sgl_kernel::base PROPERTIES
    IMPORTED_LOCATION "${{_sgl_kernel_root}}/lib/libsgl_kernel_base.a"
    INTERFACE_COMPILE_FEATURES cxx_std_20
    INTERFACE_INCLUDE_DIRECTORIES "${{_sgl_kernel_root}}/include"
    INTERFACE_LINK_LIBRARIES "{libraries}Threads::Threads;${{CMAKE_DL_LIBS}};rt")

  foreach(_sgl_kernel_family {families})
    add_library(sgl_kernel::${{_sgl_kernel_family}} STATIC IMPORTED)
    set_target_properties(sgl_kernel::${{_sgl_kernel_family}} PROPERTIES
      IMPORTED_LOCATION "${{_sgl_kernel_root}}/lib/libsgl_kernel_${{_sgl_kernel_family}}.a"
      INTERFACE_LINK_LIBRARIES sgl_kernel::base)
  endforeach()
endif()
"""

# A newer version serves who asks for an older one.
_CONFIG_VERSION = """\
set(PACKAGE_VERSION "{version}")
if(PACKAGE_VERSION VERSION_LESS PACKAGE_FIND_VERSION)
  set(PACKAGE_VERSION_COMPATIBLE FALSE)
else()
  set(PACKAGE_VERSION_COMPATIBLE TRUE)
endif()
"""


def archive(ar: str, objects: list[str]) -> bytes:
    """A static library of `objects`; their file names may repeat."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "archive.a")
        # q: append, also what has the name of another; c: create; s: index; D: no dates, no owners.
        subprocess.run([ar, "qcsD", path, *objects], check=True)
        return path.read_bytes()


def pack(output: pathlib.Path, files: dict[str, bytes]) -> None:
    """Writes a gzipped tar of files by name, without dates and owners."""
    with (
        output.open("wb") as raw,
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w") as tar,
    ):
        for name in sorted(files):
            entry = tarfile.TarInfo(f"{_ROOT}/{name}")
            entry.size = len(files[name])
            tar.addfile(entry, io.BytesIO(files[name]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=pathlib.Path)
    parser.add_argument("--version", required=True)
    parser.add_argument("--ar", required=True)
    parser.add_argument("--license", type=pathlib.Path, required=True)
    parser.add_argument("--header", action="append", default=[], dest="headers")
    parser.add_argument("--object", action="append", default=[], dest="objects")
    parser.add_argument("--library", action="append", default=[], type=pathlib.Path, dest="libraries")
    args = parser.parse_args()

    archives = {}
    for argument in args.objects:
        name, _, path = argument.partition("=")
        archives.setdefault(name, []).append(path)
    families = sorted(set(archives) - {"base"})

    files = {"LICENSE": args.license.read_bytes()}
    files |= {f"include/{header}": pathlib.Path(header).read_bytes() for header in args.headers}
    files |= {f"lib/{library.name}": library.read_bytes() for library in args.libraries}
    files |= {f"lib/libsgl_kernel_{name}.a": archive(args.ar, archives[name]) for name in archives}
    config = _CONFIG.format(
        targets=", ".join(f"sgl_kernel::{name}" for name in ["base", *families]),
        families=" ".join(families),
        libraries="".join(f"${{_sgl_kernel_root}}/lib/{library.name};" for library in args.libraries),
    )
    files[f"{_PACKAGE}/sgl_kernelConfig.cmake"] = config.encode()
    files[f"{_PACKAGE}/sgl_kernelConfigVersion.cmake"] = _CONFIG_VERSION.format(
        version=args.version.partition(".post")[0]
    ).encode()
    pack(args.output, files)


if __name__ == "__main__":
    main()
