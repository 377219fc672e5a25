// Python tensors as TensorViews, by DLPack.
//
// A type that offers DLPack's C exchange API (torch.Tensor from 2.10 on) is read through it: no copy, no reference
// kept, some 50 ns. Any other object is asked for its __dlpack__ capsule, which is held until the call is over.
#pragma once

#include <pybind11/pybind11.h>

#include "kernels/base/tensor_view.h"

namespace sgl_kernel::bind {

// False if `object` is no tensor. Throws pybind11::value_error if it is one that cannot be described: an unknown dtype,
// a device that is neither a CPU nor CUDA, more than TensorView::kMaxRank dimensions, or what its own library refuses
// (a sparse tensor, one without memory). The text goes on behind an operator's and an argument's name.
bool load_tensor(pybind11::handle object, TensorView* view, pybind11::object* owner);

// The stream that the tensor library now works on; null for the CPU.
Stream current_stream(Device device);

}  // namespace sgl_kernel::bind

namespace pybind11::detail {

template <>
struct type_caster<sgl_kernel::TensorView> {
  PYBIND11_TYPE_CASTER(sgl_kernel::TensorView, const_name("Tensor"));

 public:
  bool load(handle source, bool) { return sgl_kernel::bind::load_tensor(source, &value, &owner_); }

 private:
  object owner_;
};

}  // namespace pybind11::detail
