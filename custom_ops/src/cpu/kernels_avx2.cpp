// Compiled with -mavx2 -mfma.
#define ASVP_VECTOR_BYTES 32
#define ASVP_KERNELS kAvx2
#define ASVP_KERNELS_NAME "avx2"
#include "kernels.inl"
