#pragma once

namespace sample {

// Multiplies n values in place. Returns how: "cpu", or the SM target.
const char* scale(float* values, int n, float factor, bool on_gpu);

}  // namespace sample
