#include "launch.cuh"

cudaError_t asvp::cuda::enqueue_bfloat16(const Call& call, cudaStream_t stream) { return enqueue_on<Brain>(call, stream); }
