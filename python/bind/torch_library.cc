#include "python/bind/torch_library.h"

#include <dlfcn.h>

#include <stdexcept>
#include <string>

namespace sgl_kernel::bind {
namespace {

// Whose conventions for stack values are meant: torch 2.10.
constexpr uint64_t kTorchVersion = (uint64_t{2} << 56) | (uint64_t{10} << 48);

using TorchError = int32_t;  // 0 is success

struct TorchDType {
  const char* function;  // that tells torch's number of it
  DType dtype;
};
constexpr TorchDType kDTypes[] = {{"aoti_torch_dtype_bfloat16", DType::kBF16},
                                  {"aoti_torch_dtype_float16", DType::kF16},
                                  {"aoti_torch_dtype_float32", DType::kF32},
                                  {"aoti_torch_dtype_int64", DType::kI64},
                                  {"aoti_torch_dtype_int32", DType::kI32},
                                  {"aoti_torch_dtype_uint8", DType::kU8},
                                  {"aoti_torch_dtype_int8", DType::kI8},
                                  {"aoti_torch_dtype_float8_e4m3fn", DType::kF8E4M3},
                                  {"aoti_torch_dtype_float8_e5m2", DType::kF8E5M2},
                                  {"aoti_torch_dtype_bool", DType::kBool},
                                  {"aoti_torch_dtype_float64", DType::kF64},
                                  {"aoti_torch_dtype_int16", DType::kI16},
                                  {"aoti_torch_dtype_uint32", DType::kU32},
                                  {"aoti_torch_dtype_uint64", DType::kU64}};
constexpr int kNumDTypes = sizeof(kDTypes) / sizeof(kDTypes[0]);

// What is used of torch's C functions. Named as there, without the prefix.
struct Torch {
  TorchError (*library_init_impl)(const char* library, const char* key, const char* file, uint32_t line, void** result);
  TorchError (*library_impl)(void* library, const char* name, StackFunction function, uint64_t version);
  TorchError (*delete_tensor_object)(void* tensor);
  TorchError (*get_data_ptr)(void* tensor, void** result);
  TorchError (*get_dim)(void* tensor, int64_t* result);
  TorchError (*get_sizes)(void* tensor, int64_t** result);
  TorchError (*get_strides)(void* tensor, int64_t** result);
  TorchError (*get_dtype)(void* tensor, int32_t* result);
  TorchError (*get_device_type)(void* tensor, int32_t* result);
  TorchError (*get_device_index)(void* tensor, int32_t* result);
  TorchError (*get_current_cuda_stream)(int32_t device, void** result) = nullptr;  // of a torch without CUDA

  int32_t device_type_cpu;
  int32_t device_type_cuda;
  int32_t dtypes[kNumDTypes];
  void* cpu_library;   // torch::Library of our namespace and the dispatch key CPU
  void* cuda_library;  // "                                                    CUDA

  bool found = false;

  Torch() { found = find(); }

 private:
  bool find() {
    void* libtorch = dlopen("libtorch_cpu.so", RTLD_LAZY | RTLD_NOLOAD);  // null if torch is not loaded
    if (libtorch == nullptr) return false;
    const auto look_up = [libtorch](const char* name, auto* function) {
      *reinterpret_cast<void**>(function) = dlsym(libtorch, name);
      return *function != nullptr;
    };
    const auto number = [&](const char* name, int32_t* result) {
      int32_t (*function)() = nullptr;
      if (!look_up(name, &function)) return false;
      *result = function();
      return true;
    };
    for (int i = 0; i < kNumDTypes; ++i) {
      if (!number(kDTypes[i].function, &dtypes[i])) return false;
    }
    if (void* cuda = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD)) {
      *reinterpret_cast<void**>(&get_current_cuda_stream) = dlsym(cuda, "aoti_torch_get_current_cuda_stream");
      if (get_current_cuda_stream == nullptr) return false;
    }
    return number("aoti_torch_device_type_cpu", &device_type_cpu) &&
           number("aoti_torch_device_type_cuda", &device_type_cuda) &&
           look_up("aoti_torch_delete_tensor_object", &delete_tensor_object) &&
           look_up("aoti_torch_get_data_ptr", &get_data_ptr) && look_up("aoti_torch_get_dim", &get_dim) &&
           look_up("aoti_torch_get_sizes", &get_sizes) && look_up("aoti_torch_get_strides", &get_strides) &&
           look_up("aoti_torch_get_dtype", &get_dtype) && look_up("aoti_torch_get_device_type", &get_device_type) &&
           look_up("aoti_torch_get_device_index", &get_device_index) && look_up("torch_library_impl", &library_impl) &&
           look_up("aoti_torch_library_init_impl", &library_init_impl) &&
           library_init_impl("sgl_kernel", "CPU", __FILE__, __LINE__, &cpu_library) == 0 &&
           library_init_impl("sgl_kernel", "CUDA", __FILE__, __LINE__, &cuda_library) == 0;
  }
};

// Looked up once, and there as long as the process: torch calls what is registered until then.
const Torch& torch() {
  static const Torch* const torch = new Torch();
  return *torch;
}

}  // namespace

void register_with_torch(const char* name, StackFunction function) {
  if (!torch().found) return;
  for (void* library : {torch().cpu_library, torch().cuda_library}) {
    if (torch().library_impl(library, name, function, kTorchVersion) != 0) return;  // Python's function serves
  }
}

Stream torch_stream(Device device) {
  if (device.is_cpu()) return {};
  void* stream = nullptr;
  if (torch().get_current_cuda_stream(device.index, &stream) != 0) {
    throw std::runtime_error("sgl_kernel: torch has no current stream of cuda:" + std::to_string(device.index));
  }
  return {stream};
}

void throw_through_torch(const Status& status) {
  if (status.ok()) return;
  if (status.code() == StatusCode::kInvalidArgument) throw std::invalid_argument(status.message());
  throw std::runtime_error(status.message());
}

StackTensor::~StackTensor() {
  if (handle_ != nullptr) torch().delete_tensor_object(handle_);
}

TensorView StackTensor::view() const {
  void* data = nullptr;
  int64_t rank = 0, *sizes = nullptr, *strides = nullptr;
  int32_t torch_dtype = 0, device_type = 0, device_index = 0;
  if (torch().get_data_ptr(handle_, &data) | torch().get_dim(handle_, &rank) | torch().get_sizes(handle_, &sizes) |
      torch().get_strides(handle_, &strides) | torch().get_dtype(handle_, &torch_dtype) |
      torch().get_device_type(handle_, &device_type) | torch().get_device_index(handle_, &device_index)) {
    throw std::invalid_argument("is None or has no strided memory, expected a tensor");
  }
  if (rank > TensorView::kMaxRank) {
    throw std::invalid_argument("has " + std::to_string(rank) + " dimensions, expected at most " +
                                std::to_string(TensorView::kMaxRank));
  }
  int i = 0;
  while (i < kNumDTypes && torch().dtypes[i] != torch_dtype) ++i;
  if (i == kNumDTypes) {
    throw std::invalid_argument("has torch's dtype number " + std::to_string(torch_dtype) +
                                ", which no operator takes");
  }
  Device device;
  if (device_type == torch().device_type_cuda) {
    device = {Device::Kind::kCuda, device_index};
  } else if (device_type != torch().device_type_cpu) {
    throw std::invalid_argument("is on torch's device type " + std::to_string(device_type) +
                                ", expected the CPU or CUDA");
  }
  return TensorView(data, kDTypes[i].dtype, static_cast<int>(rank), sizes, strides, device);
}

}  // namespace sgl_kernel::bind
