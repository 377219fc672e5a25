// Marks a function that CPU and CUDA targets share; it implies inline.
#pragma once

#ifdef __CUDACC__
#define SGL_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define SGL_HOST_DEVICE inline
#endif
