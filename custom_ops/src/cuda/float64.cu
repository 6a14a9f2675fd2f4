#include "launch.cuh"

cudaError_t asvp::cuda::enqueue_float64(const Call& call, cudaStream_t stream) { return enqueue_on<double>(call, stream); }
