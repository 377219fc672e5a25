// The one `def` that the bindings use: an operator is its schema and its C++ function.
//
//   PYBIND11_MODULE(_elementwise, module) {
//     sgl_kernel::bind::Operators ops(module);
//     ops.def("rmsnorm(Tensor! output, Tensor input, Tensor weight, float eps, bool enable_pdl) -> ()", &rmsnorm);
//   }
//
// It makes the positional-only Python function `rmsnorm`, which runs on the current stream of its first tensor's device
// and turns a Status into an exception; and it adds the schema to the module's `__schemas__`, from which
// torch.ops.sgl_kernel is registered.
//
// The function's parameters are the schema's arguments in its order, then a Stream. What an operator returns, and its
// scratch space, come before them: `(Tensor W, …) -> Tensor` is `(TensorView result, TensorView W, …, Stream)`. A
// ScalarType argument is left out (the result says its dtype), a Generator argument is a tensor of seeds.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "kernels/base/status.h"
#include "python/bind/tensor.h"

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
};

// `kinds` is a letter a parameter. Throws ImportError unless it ends with those of the schema's arguments and what
// comes before them are tensors.
Signature read_schema(const char* schema, const std::string& kinds);

[[noreturn]] void throw_type_error(const Signature& signature, size_t argument, pybind11::handle value);

// A Python value as a parameter of type T, kept for the length of the call.
template <class T>
struct Argument {
  pybind11::detail::make_caster<T> caster;

  Argument(const Signature& signature, size_t index, pybind11::handle value) {
    if (!caster.load(value, /*convert=*/true)) throw_type_error(signature, index, value);
  }
  operator T() { return pybind11::detail::cast_op<T>(caster); }
};

template <class T>
using HandleFor = pybind11::handle;

template <class Function>
struct ParametersOf;
template <class... Params>
struct ParametersOf<Status(Params...)> {
  using Tuple = std::tuple<Params...>;
};
template <size_t kIndex, class Function>
using ParameterOf = std::tuple_element_t<kIndex, typename ParametersOf<Function>::Tuple>;

template <class... Params, class Function, size_t... kIndex>
void call(const Signature& signature, Function* function, std::index_sequence<kIndex...>, HandleFor<Params>... values) {
  // Braces, unlike parentheses, evaluate from left to right: the first wrong argument is the one that is told.
  std::tuple<Argument<std::decay_t<Params>>...> arguments{Argument<std::decay_t<Params>>(signature, kIndex, values)...};
  std::apply(
      [function](auto&... argument) {
        const std::tuple<std::decay_t<Params>...> converted{static_cast<std::decay_t<Params>>(argument)...};
        std::apply(
            [function](const auto&... parameter) {
              std::optional<Device> device;
              (find_device(parameter, &device), ...);
              throw_if_error(function(parameter..., current_stream(device.value_or(Device()))));
            },
            converted);
      },
      arguments);
}

}  // namespace internal

class Operators {
 public:
  explicit Operators(pybind11::module_ module) : module_(std::move(module)) {
    internal::share_threads();
    module_.attr("__schemas__") = pybind11::list();
  }

  template <class... Params>
  void def(const char* schema, Status (*function)(Params...)) {
    def_parameters(schema, function, std::make_index_sequence<sizeof...(Params) - 1>());
  }

 private:
  // The parameters without the last one, the Stream.
  template <class Function, size_t... kIndex>
  void def_parameters(const char* schema, Function* function, std::index_sequence<kIndex...>) {
    def_call<internal::ParameterOf<kIndex, Function>...>(schema, function);
  }

  template <class... Params, class Function>
  void def_call(const char* schema, Function* function) {
    internal::Signature signature = internal::read_schema(schema, {internal::kind_of<Params>()...});
    const std::string name = signature.name;
    module_.def(
        name.c_str(),
        [function, signature = std::move(signature)](internal::HandleFor<Params>... values) {
          internal::call<Params...>(signature, function, std::index_sequence_for<Params...>(), values...);
        },
        schema);
    module_.attr("__schemas__").attr("append")(schema);
  }

  pybind11::module_ module_;
};

}  // namespace sgl_kernel::bind
