#include "python/bind/operators.h"

#include <algorithm>
#include <string_view>

#include "kernels/base/parallel.h"

namespace sgl_kernel::bind {

namespace py = pybind11;

void throw_if_error(const Status& status) {
  switch (status.code()) {
    case StatusCode::kOk:
      return;
    case StatusCode::kInvalidArgument:
      throw py::value_error(status.message());
    case StatusCode::kUnsupported:
      PyErr_SetString(PyExc_NotImplementedError, status.message());
      throw py::error_already_set();
    case StatusCode::kResourceExhausted:
    case StatusCode::kInternal:
      PyErr_SetString(PyExc_RuntimeError, status.message());
      throw py::error_already_set();
  }
}

namespace internal {

void share_threads() {
  constexpr char kKey[] = "sgl_kernel.threads";
  if (void* threads = py::get_shared_data(kKey)) {
    use_threads(static_cast<Threads*>(threads));
  } else {
    py::set_shared_data(kKey, sgl_kernel::threads());
  }
}

namespace {

// The letter of a schema type, without its name: "Tensor!?" is 't'. 0 for a ScalarType, which no function takes.
char kind_of_schema_type(std::string_view type) {
  std::string plain;
  for (char c : type) {
    if (c != '!') plain += c;
  }
  if (plain == "Tensor") return 'T';
  if (plain == "Tensor?") return 't';
  if (plain == "Tensor[]") return 'L';
  if (plain == "Generator" || plain == "Generator?") return 'T';
  if (plain == "int" || plain == "SymInt") return 'i';
  if (plain == "int?" || plain == "SymInt?") return 'j';
  if (plain == "float") return 'd';
  if (plain == "float?") return 'e';
  if (plain == "bool") return 'b';
  if (plain == "bool?") return 'c';
  if (plain == "int[]") return 'I';
  if (plain == "ScalarType" || plain == "ScalarType?") return 0;
  return '?';
}

}  // namespace

Signature read_schema(const char* schema, const std::string& kinds) {
  const std::string_view text = schema;
  const size_t open = text.find('('), close = text.find(')');
  Signature signature{std::string(text.substr(0, open)), {}};
  std::string expected;
  signature.is_whole = text.ends_with("-> ()");
  for (size_t at = open + 1; at < close;) {
    const size_t end = std::min(text.find(',', at), close);
    const size_t begin = text.find_first_not_of(' ', at);
    const std::string_view argument = text.substr(begin, end - begin);
    const std::string_view type = argument.substr(0, argument.find(' '));
    if (const char kind = kind_of_schema_type(type)) {
      expected += kind;
      signature.arguments.emplace_back(argument);
    }
    if (type.starts_with("ScalarType") || type.starts_with("Generator")) signature.is_whole = false;
    at = end + 1;
  }
  const size_t leading = kinds.size() - std::min(kinds.size(), expected.size());
  if (kinds.substr(leading) != expected || kinds.find_first_not_of('T') < leading) {
    throw py::import_error("the schema " + std::string(schema) + " does not fit its C++ function: arguments " +
                           expected + ", parameters " + kinds);
  }
  signature.arguments.insert(signature.arguments.begin(), leading, "Tensor result");
  if (leading > 0) signature.is_whole = false;
  return signature;
}

void throw_type_error(const Signature& signature, size_t argument, py::handle value) {
  const std::string& declared = signature.arguments[argument];
  const size_t space = declared.find(' ');
  const std::string name = declared.substr(space + 1, declared.find('=') - space - 1);
  throw py::type_error(signature.name + ": " + name + " is a " + Py_TYPE(value.ptr())->tp_name + ", expected " +
                       declared.substr(0, space));
}

void throw_count_error(const Signature& signature, size_t count) {
  throw py::type_error(signature.name + ": " + std::to_string(count) + " arguments were given, expected " +
                       std::to_string(signature.arguments.size()));
}

void set_python_error() {
  try {
    throw;
  } catch (py::error_already_set& error) {
    error.restore();
  } catch (const py::builtin_exception& error) {
    error.set_error();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
}

}  // namespace internal
}  // namespace sgl_kernel::bind
