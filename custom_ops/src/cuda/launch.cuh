// Kernels on a stream.
#ifndef ASVP_CUDA_LAUNCH_CUH_
#define ASVP_CUDA_LAUNCH_CUH_

#include <cuda_runtime.h>

#include "sequence.h"

namespace asvp {
namespace cuda {

template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, Kernel::kBlocks) entry(const __grid_constant__ Call call) {
  DeviceBlock block;
  Kernel::run(block, call, static_cast<int64_t>(blockIdx.x));
}

// Launches alone, and memsets on the stream: the sequence can be captured into a graph. Errors are those that the calls
// themselves return; what another part of the process left behind is neither taken for ours nor cleared, while ours, once it
// is known, is not left behind for others.
struct Stream {
  cudaStream_t stream;
  cudaError_t error;

  bool clear(const Call& call) {
    const size_t pitch = static_cast<size_t>(call.plan.sample_bytes), width = static_cast<size_t>(call.plan.cleared_bytes);
    if (call.count == 1) return good(cudaMemsetAsync(call.memory, 0, width, stream));  // any size of sample
    return good(cudaMemset2DAsync(call.memory, pitch, 0, width, static_cast<size_t>(call.count), stream));
  }

  template <class Kernel>
  bool launch(const Call& call) {
    const int64_t blocks = Kernel::blocks(call.plan, call.count);
    if (blocks > INT32_MAX) return good(cudaErrorInvalidConfiguration);
    const int shared = Kernel::shared_bytes(call.plan);
    // More than 48 KiB has to be asked for. Always the same amount, so that threads may do it at once; not a query, and
    // allowed while a graph is captured.
    if (shared > kSharedBytes &&
        !good(cudaFuncSetAttribute(entry<Kernel>, cudaFuncAttributeMaxDynamicSharedMemorySize, call.plan.solve_bytes)))
      return false;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(static_cast<unsigned>(blocks));
    config.blockDim = dim3(Kernel::kThreads);
    config.dynamicSmemBytes = static_cast<size_t>(shared);
    config.stream = stream;
    return good(cudaLaunchKernelEx(&config, entry<Kernel>, call));
  }

  bool good(cudaError_t status) {
    error = status;
    if (status != cudaSuccess) cudaGetLastError();
    return status == cudaSuccess;
  }
};

// One for each type of map, spread over three files.
cudaError_t enqueue_float32(const Call& call, cudaStream_t stream);
cudaError_t enqueue_float16(const Call& call, cudaStream_t stream);
cudaError_t enqueue_bfloat16(const Call& call, cudaStream_t stream);
cudaError_t enqueue_float64(const Call& call, cudaStream_t stream);

template <class E>
cudaError_t enqueue_on(const Call& call, cudaStream_t stream) {
  Stream go = {stream, cudaSuccess};
  enqueue<E>(go, call);
  return go.error;
}

}  // namespace cuda
}  // namespace asvp

#endif  // ASVP_CUDA_LAUNCH_CUH_
