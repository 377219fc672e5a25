#include "tests/build/sample/scale.h"

#include <cstdio>
#include <cstring>

int main() {
  float values[3] = {1, 2, 3};
  const char* target = sample::scale(values, 3, 2, /*on_gpu=*/false);
  if (std::strcmp(target, "cpu") != 0 || values[2] != 6) {
    std::printf("scale: on %s, values[2] is %g, expected 6\n", target, values[2]);
    return 1;
  }
}
