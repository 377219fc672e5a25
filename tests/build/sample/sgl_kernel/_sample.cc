#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <vector>

#include "tests/build/sample/scale.h"

PYBIND11_MODULE(_sample, module) {
  module.def("scale", [](std::vector<float> values, float factor) {
    return sample::scale(values.data(), static_cast<int>(values.size()), factor, false);
  });
}
