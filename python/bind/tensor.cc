#include "python/bind/tensor.h"

#include <dlpack/dlpack.h>

#include <string>

namespace sgl_kernel::bind {
namespace {

namespace py = pybind11;

DType dtype_of(const DLDataType& type) {
  if (type.lanes == 1) {
    switch (type.code) {
      case kDLBool:
        return DType::kBool;
      case kDLInt:
        if (type.bits == 8) return DType::kI8;
        if (type.bits == 16) return DType::kI16;
        if (type.bits == 32) return DType::kI32;
        if (type.bits == 64) return DType::kI64;
        break;
      case kDLUInt:
        if (type.bits == 8) return DType::kU8;
        if (type.bits == 32) return DType::kU32;
        if (type.bits == 64) return DType::kU64;
        break;
      case kDLFloat:
        if (type.bits == 16) return DType::kF16;
        if (type.bits == 32) return DType::kF32;
        if (type.bits == 64) return DType::kF64;
        break;
      case kDLBfloat:
        if (type.bits == 16) return DType::kBF16;
        break;
      case kDLFloat8_e4m3fn:
        return DType::kF8E4M3;
      case kDLFloat8_e5m2:
        return DType::kF8E5M2;
    }
  }
  throw py::value_error("has DLPack dtype (code " + std::to_string(type.code) + ", " + std::to_string(type.bits) +
                        " bits), which no operator takes");
}

Device device_of(const DLDevice& device) {
  switch (device.device_type) {
    case kDLCPU:
    case kDLCUDAHost:
      return {Device::Kind::kCpu, 0};
    case kDLCUDA:
    case kDLCUDAManaged:
      return {Device::Kind::kCuda, device.device_id};
    default:
      throw py::value_error("is on DLPack device type " + std::to_string(device.device_type) +
                            ", expected the CPU or CUDA");
  }
}

TensorView view_of(const DLTensor& tensor) {
  if (tensor.ndim > TensorView::kMaxRank) {
    throw py::value_error("has " + std::to_string(tensor.ndim) + " dimensions, expected at most " +
                          std::to_string(TensorView::kMaxRank));
  }
  int64_t dense[TensorView::kMaxRank];
  const int64_t* strides = tensor.strides;
  if (strides == nullptr) {  // DLPack's way of saying row-major
    int64_t stride = 1;
    for (int dim = tensor.ndim - 1; dim >= 0; --dim) {
      dense[dim] = stride;
      stride *= tensor.shape[dim];
    }
    strides = dense;
  }
  return TensorView(static_cast<char*>(tensor.data) + tensor.byte_offset, dtype_of(tensor.dtype), tensor.ndim,
                    tensor.shape, strides, device_of(tensor.device));
}

// What the types of the last tensors offer: nearly all are torch's Tensor or its Parameter. The types are kept alive.
struct KnownType {
  PyTypeObject* type = nullptr;
  const DLPackExchangeAPI* api = nullptr;
};
constexpr int kKnownTypes = 4;
KnownType known[kKnownTypes];  // guarded by the interpreter's lock, like the next two
int next_known = 0;
const DLPackExchangeAPI* last_used = nullptr;  // of the tensor that was loaded last

// Null if the type has no exchange API of the version that this was built with.
const DLPackExchangeAPI* exchange_api(PyTypeObject* type) {
  for (const KnownType& entry : known) {
    if (entry.type == type) return entry.api;
  }
  const py::object capsule = py::getattr(reinterpret_cast<PyObject*>(type), "__dlpack_c_exchange_api__", py::none());
  if (!PyCapsule_IsValid(capsule.ptr(), "dlpack_exchange_api")) return nullptr;
  auto* header =
      static_cast<const DLPackExchangeAPIHeader*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
  while (header != nullptr && header->version.major > DLPACK_MAJOR_VERSION) header = header->prev_api;
  if (header == nullptr || header->version.major != DLPACK_MAJOR_VERSION) return nullptr;
  auto* api = reinterpret_cast<const DLPackExchangeAPI*>(header);
  if (api->dltensor_from_py_object_no_sync == nullptr) return nullptr;
  KnownType& oldest = known[next_known];
  next_known = (next_known + 1) % kKnownTypes;
  Py_INCREF(type);
  Py_XDECREF(oldest.type);
  oldest = {type, api};
  return api;
}

// Makes the error that a tensor's own library has raised a value_error, with the first line of its text.
[[noreturn]] void throw_undescribed(py::error_already_set& error) {
  const std::string text = py::str(error.value());
  throw py::value_error("cannot be described by DLPack: " + text.substr(0, text.find('\n')));
}

DLManagedTensor* ask_dlpack(py::handle object, py::object* owner) {
  // A stream of -1 asks the producer not to synchronize: the operator runs on the producer's own current stream.
  const bool on_cuda = py::cast<py::tuple>(object.attr("__dlpack_device__")())[0].cast<int>() == kDLCUDA;
  *owner = on_cuda ? object.attr("__dlpack__")(py::arg("stream") = -1) : object.attr("__dlpack__")();
  auto* managed = static_cast<DLManagedTensor*>(PyCapsule_GetPointer(owner->ptr(), "dltensor"));
  if (managed == nullptr) throw py::error_already_set();
  return managed;
}

}  // namespace

bool load_tensor(py::handle object, TensorView* view, py::object* owner) {
  if (object.is_none()) return false;
  try {
    if (const DLPackExchangeAPI* api = exchange_api(Py_TYPE(object.ptr()))) {
      last_used = api;
      DLTensor tensor;
      if (api->dltensor_from_py_object_no_sync(object.ptr(), &tensor) != 0) throw py::error_already_set();
      *view = view_of(tensor);
      return true;
    }
    if (!py::hasattr(object, "__dlpack__")) return false;
    *view = view_of(ask_dlpack(object, owner)->dl_tensor);
    return true;
  } catch (py::error_already_set& error) {
    throw_undescribed(error);
  }
}

Stream current_stream(Device device) {
  if (device.is_cpu()) return {};
  void* stream = nullptr;
  if (last_used != nullptr && last_used->current_work_stream != nullptr) {
    if (last_used->current_work_stream(kDLCUDA, device.index, &stream) != 0) throw py::error_already_set();
    return {stream};
  }
  const py::object torch = py::module_::import("torch");
  const auto handle = torch.attr("cuda").attr("current_stream")(device.index).attr("cuda_stream").cast<uintptr_t>();
  return {reinterpret_cast<void*>(handle)};
}

}  // namespace sgl_kernel::bind
