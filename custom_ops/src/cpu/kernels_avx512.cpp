// Compiled with -mavx512f, bw, dq, vl.
#define ASVP_VECTOR_BYTES 64
#define ASVP_KERNELS kAvx512
#define ASVP_KERNELS_NAME "avx512"
#include "kernels.inl"
