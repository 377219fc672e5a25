// The least that a C++ test needs: a failed expectation says where, and the program exits with 1.
#pragma once

#include <cstdio>
#include <string>

namespace sgl_kernel::test {

inline int failures = 0;

inline void expect(bool holds, const char* file, int line, const std::string& what) {
  if (holds) return;
  // The first ones tell enough; a loop over all floats may fail very often.
  if (++failures <= 20) std::printf("%s:%d: %s\n", file, line, what.c_str());
}

inline std::string text(const std::string& value) { return "\"" + value + "\""; }
inline std::string text(const char* value) { return text(std::string(value)); }
template <class Number>
std::string text(Number value) {
  return std::to_string(value);
}

// What main() returns.
inline int result() {
  if (failures > 0) std::printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}

}  // namespace sgl_kernel::test

#define EXPECT(condition) ::sgl_kernel::test::expect((condition), __FILE__, __LINE__, #condition)
#define EXPECT_EQ(actual, expected)                                                                           \
  ::sgl_kernel::test::expect((actual) == (expected), __FILE__, __LINE__,                                      \
                             std::string(#actual " is ") + ::sgl_kernel::test::text(actual) + ", expected " + \
                                 ::sgl_kernel::test::text(expected))
