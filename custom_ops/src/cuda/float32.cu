#include "launch.cuh"

cudaError_t asvp::cuda::enqueue_float32(const Call& call, cudaStream_t stream) { return enqueue_on<float>(call, stream); }
