// The one `def` that the bindings use: an operator is its schema and its C++ function.
//
//   PYBIND11_MODULE(_elementwise, module) {
//     sgl_kernel::bind::Operators ops(module);
//     ops.def<&rmsnorm>("rmsnorm(Tensor! output, Tensor input, Tensor weight, float eps, bool enable_pdl) -> ()");
//   }
//
// It makes the positional-only Python function `rmsnorm`, which runs on the current stream of its first tensor's device
// and turns a Status into an exception; and it adds the schema to the module's `__schemas__`, from which
// torch.ops.sgl_kernel is registered. Where the schema's arguments are all that the function takes, torch.ops calls it
// without Python (torch_library.h).
//
// The function's parameters are the schema's arguments in its order, then a Stream. What an operator returns, and its
// scratch space, come before them: `(Tensor W, …) -> Tensor` is `(TensorView result, TensorView W, …, Stream)`. A
// ScalarType argument is left out (the result says its dtype), a Generator argument is a tensor of seeds.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "kernels/base/status.h"
#include "python/bind/tensor.h"
#include "python/bind/torch_library.h"

namespace sgl_kernel::bind {

// InvalidArgument → ValueError, Unsupported → NotImplementedError, the others → RuntimeError.
void throw_if_error(const Status& status);

namespace internal {

// Makes the family modules of a process use one set of CPU threads: that of the module that is loaded first.
void share_threads();

// The device of the first tensor among the arguments; the CPU if there is none.
inline void find_device(const TensorView& tensor, std::optional<Device>* device) {
  if (!device->has_value()) *device = tensor.device();
}
inline void find_device(const std::optional<TensorView>& tensor, std::optional<Device>* device) {
  if (tensor.has_value()) find_device(*tensor, device);
}
inline void find_device(const std::vector<TensorView>& tensors, std::optional<Device>* device) {
  if (!tensors.empty()) find_device(tensors.front(), device);
}
template <class T>
void find_device(const T&, std::optional<Device>*) {}

// The letter of the schema type that a C++ parameter stands for; see read_schema().
template <class T>
constexpr char kind_of() {
  using U = std::remove_cv_t<std::remove_reference_t<T>>;
  if constexpr (std::is_same_v<U, TensorView>) return 'T';
  if constexpr (std::is_same_v<U, std::optional<TensorView>>) return 't';
  if constexpr (std::is_same_v<U, std::vector<TensorView>>) return 'L';
  if constexpr (std::is_same_v<U, int64_t>) return 'i';
  if constexpr (std::is_same_v<U, std::optional<int64_t>>) return 'j';
  if constexpr (std::is_same_v<U, double>) return 'd';
  if constexpr (std::is_same_v<U, std::optional<double>>) return 'e';
  if constexpr (std::is_same_v<U, bool>) return 'b';
  if constexpr (std::is_same_v<U, std::optional<bool>>) return 'c';
  if constexpr (std::is_same_v<U, std::vector<int64_t>>) return 'I';
  return '?';
}

// A schema, read against the C++ function that it is bound to.
struct Signature {
  std::string name;
  std::vector<std::string> arguments;  // "Tensor weight", one a parameter but the Stream; "Tensor result" in front
  bool is_whole = false;  // the parameters are the schema's arguments, each as it stands there, and nothing is returned
};

// `kinds` is a letter a parameter. Throws ImportError unless it ends with those of the schema's arguments and what
// comes before them are tensors.
Signature read_schema(const char* schema, const std::string& kinds);

[[noreturn]] void throw_type_error(const Signature& signature, size_t argument, pybind11::handle value);

// Of load_tensor(), and of StackTensor::view(), whose text says what the tensor is: puts the operator and the argument
// in front.
[[noreturn]] void throw_value_error(const Signature& signature, size_t argument, const pybind11::value_error& error);
[[noreturn]] void throw_value_error(const Signature& signature, size_t argument, const std::invalid_argument& error);

[[noreturn]] void throw_count_error(const Signature& signature, size_t count);

// To be called while an exception is handled: makes it the interpreter's error.
void set_python_error();

// A Python value as a parameter of type T, kept for the length of the call.
template <class T>
class Argument {
 public:
  Argument(const Signature& signature, size_t index, pybind11::handle value) {
    try {
      if (caster_.load(value, /*convert=*/true)) return;
    } catch (const pybind11::value_error& error) {
      throw_value_error(signature, index, error);
    }
    throw_type_error(signature, index, value);
  }
  const T& get() { return pybind11::detail::cast_op<T&>(caster_); }

 private:
  pybind11::detail::make_caster<T> caster_;
};

// The parameter that is an argument on the dispatcher's stack.
template <class T>
T parameter_of(const Signature& signature, size_t index, const StackArgument<T>& argument) {
  try {
    return argument.get();
  } catch (const std::invalid_argument& error) {
    throw_value_error(signature, index, error);
  }
}

// Calls an operator on the stream that stream_of() gives for its first tensor's device.
template <class Function, class... Params>
Status call(Function* function, Stream (*stream_of)(Device), const Params&... parameters) {
  std::optional<Device> device;
  (find_device(parameters, &device), ...);
  return function(parameters..., stream_of(device.value_or(Device())));
}

// The operator `kFunction`, whose parameters without the Stream are Params, as others call it.
template <auto kFunction, class... Params>
struct Bound {
  static inline Signature signature;
  static inline PyMethodDef methods[2] = {};  // the second one ends the list

  static PyObject* from_python(PyObject*, PyObject* const* values, Py_ssize_t count) {
    return from_python(values, count, std::index_sequence_for<Params...>());
  }
  static void from_torch(StackValue* stack, uint64_t, uint64_t) {
    from_torch(stack, std::index_sequence_for<Params...>());
  }

 private:
  template <size_t... kIndex>
  static PyObject* from_python(PyObject* const* values, Py_ssize_t count, std::index_sequence<kIndex...>) {
    try {
      if (count != sizeof...(Params)) throw_count_error(signature, count);
      // Braces, unlike parentheses, evaluate from left to right: the first wrong argument is the one that is told.
      std::tuple<Argument<Params>...> arguments{Argument<Params>(signature, kIndex, values[kIndex])...};
      throw_if_error(call(kFunction, &current_stream, std::get<kIndex>(arguments).get()...));
    } catch (...) {
      set_python_error();
      return nullptr;
    }
    Py_RETURN_NONE;
  }

  template <size_t... kIndex>
  static void from_torch(StackValue* stack, std::index_sequence<kIndex...>) {
    const std::tuple<StackArgument<Params>...> arguments(stack[kIndex]...);
    throw_through_torch(
        call(kFunction, &torch_stream, parameter_of(signature, kIndex, std::get<kIndex>(arguments))...));
  }
};

// Whether the dispatcher's stack can hold the parameters: numbers and single tensors, optional or not.
template <class... Params>
constexpr bool fit_a_stack() {
  return (!(kind_of<Params>() == 'L' || kind_of<Params>() == 'I') && ...);
}

template <class Function>
struct ParametersOf;
template <class... Params>
struct ParametersOf<Status (*)(Params...)> {
  using Tuple = std::tuple<std::decay_t<Params>...>;
};

}  // namespace internal

class Operators {
 public:
  explicit Operators(pybind11::module_ module) : module_(std::move(module)) {
    internal::share_threads();
    module_.attr("__schemas__") = pybind11::list();
  }

  template <auto kFunction>
  void def(const char* schema) {
    using Parameters = typename internal::ParametersOf<decltype(kFunction)>::Tuple;
    // Without the last one, the Stream.
    def_parameters<kFunction, Parameters>(schema, std::make_index_sequence<std::tuple_size_v<Parameters> - 1>());
  }

  // The schema of an operator that def() cannot bind, as it has no tensors: its function is the Python module's.
  void declare(const char* schema) { module_.attr("__schemas__").attr("append")(schema); }

 private:
  template <auto kFunction, class Parameters, size_t... kIndex>
  void def_parameters(const char* schema, std::index_sequence<kIndex...>) {
    def_operator<kFunction, std::tuple_element_t<kIndex, Parameters>...>(schema);
  }

  template <auto kFunction, class... Params>
  void def_operator(const char* schema) {
    using Bound = internal::Bound<kFunction, Params...>;
    Bound::signature = internal::read_schema(schema, {internal::kind_of<Params>()...});
    const char* name = Bound::signature.name.c_str();
    PyObject* (*function)(PyObject*, PyObject* const*, Py_ssize_t) = &Bound::from_python;
    Bound::methods[0] = {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(function)), METH_FASTCALL, schema};
    if (PyModule_AddFunctions(module_.ptr(), Bound::methods) != 0) throw pybind11::error_already_set();
    if constexpr (internal::fit_a_stack<Params...>()) {
      if (Bound::signature.is_whole) register_with_torch(name, &Bound::from_torch);
    }
    declare(schema);
  }

  pybind11::module_ module_;
};

}  // namespace sgl_kernel::bind
