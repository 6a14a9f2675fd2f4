// Both half types: they share the solve.

#include "launch.cuh"

cudaError_t asvp::cuda::enqueue_float16(const Call& call, cudaStream_t stream) { return enqueue_on<Half>(call, stream); }
cudaError_t asvp::cuda::enqueue_bfloat16(const Call& call, cudaStream_t stream) { return enqueue_on<Brain>(call, stream); }
