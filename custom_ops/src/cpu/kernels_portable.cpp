// Vectors of 16 bytes: SSE2 on every x86-64, NEON on arm64, plain code elsewhere.
#define ASVP_VECTOR_BYTES 16
#define ASVP_KERNELS kPortable
#define ASVP_KERNELS_NAME "portable"
#include "kernels.inl"
