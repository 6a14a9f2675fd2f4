#include "launch.cuh"

cudaError_t asvp::cuda::enqueue_float16(const Call& call, cudaStream_t stream) { return enqueue_on<Half>(call, stream); }
