#pragma once

// Each target defines its kernel in its own namespace.
#define SAMPLE_DECLARE(target)                           \
  namespace sample::target {                             \
  const char* scale(float* values, int n, float factor); \
  }

SAMPLE_DECLARE(cpu)
SAMPLE_DECLARE(sm_80)
SAMPLE_DECLARE(sm_89)
SAMPLE_DECLARE(sm_90a)
SAMPLE_DECLARE(sm_100a)
SAMPLE_DECLARE(sm_120a)
