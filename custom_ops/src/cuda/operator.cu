// The CUDA half of the C ABI.

#include <atomic>

#include "launch.cuh"

namespace {

// Looked up once: cudaGetDeviceCount starts the driver's library, nothing on a GPU.
const char* look_for_gpus() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaSuccess) {
    for (int device = 0; device < count; ++device) {
      int major = 0, minor = 0;
      if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
          cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) == cudaSuccess &&
          10 * major + minor >= 75)
        return nullptr;
    }
    return count > 0 ? "every GPU here is older than compute capability 7.5" : "no GPU was found";
  }
  cudaGetLastError();  // ours, and the thread's next caller should not find it
  switch (error) {
    case cudaErrorNoDevice: return "no GPU was found";
    case cudaErrorInsufficientDriver: return "no NVIDIA driver, or one too old for the CUDA runtime of this libasvp";
    case cudaErrorSystemDriverMismatch: return "the NVIDIA driver's parts do not fit together";
    case cudaErrorSystemNotReady: return "the NVIDIA driver is not ready";
    default: return "the CUDA runtime could not start";
  }
}

// What a block may ask for on the current device, looked up once for each device; 0: it cannot be told.
int solve_bytes() {
  static std::atomic<int> known[64];
  int device = 0, bytes = 0;
  if (cudaGetDevice(&device) != cudaSuccess) {
    cudaGetLastError();
    return 0;
  }
  const bool remembered = device < 64;
  if (remembered && (bytes = known[device].load(std::memory_order_relaxed)) > 0) return bytes;
  if (cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) != cudaSuccess) {
    cudaGetLastError();
    return 0;
  }
  bytes = bytes < asvp::cuda::kSharedBytes ? asvp::cuda::kSharedBytes : bytes;
  if (remembered) known[device].store(bytes, std::memory_order_relaxed);
  return bytes;
}

bool too_large(const asvp::cuda::Plan& plan) { return plan.positions == 0 || plan.c > asvp::cuda::kMostChannels; }

}  // namespace

extern "C" {

const char* asvp_cuda_unavailable(void) {
  static const char* const reason = look_for_gpus();
  return reason;
}

size_t asvp_workspace_cuda(const asvp_problem* problem) {
  if (asvp_check(problem) || asvp_cuda_unavailable()) return 0;
  if (problem->n == 0 || problem->c == 0 || problem->l == 0) return 0;
  // The workspace does not depend on addresses or on the device.
  const asvp::cuda::Plan plan = asvp::cuda::make_plan(*problem, nullptr, nullptr, 0);
  return too_large(plan) ? 0 : static_cast<size_t>(plan.bytes);
}

asvp_status asvp_perturb_cuda(const asvp_problem* problem, const void* x, void* y, void* workspace, size_t workspace_bytes,
                              void* stream) {
  using namespace asvp::cuda;
  if (asvp_check(problem)) return ASVP_BAD_ARGUMENT;
  if (problem->n == 0 || problem->c == 0 || problem->l == 0) return ASVP_OK;
  if (!x || !y) return ASVP_BAD_ARGUMENT;
  if (asvp_cuda_unavailable()) return ASVP_CUDA_ERROR;
  const int bytes = solve_bytes();
  if (bytes == 0) return ASVP_CUDA_ERROR;
  const Plan plan = make_plan(*problem, x, y, bytes);
  if (too_large(plan)) return ASVP_BAD_ARGUMENT;
  // A load from such an address would end every use of the device by this process.
  if ((reinterpret_cast<uintptr_t>(x) | reinterpret_cast<uintptr_t>(y)) % plan.element_bytes != 0) return ASVP_BAD_ARGUMENT;
  if (!workspace || reinterpret_cast<uintptr_t>(workspace) % 256 != 0 || workspace_bytes < static_cast<size_t>(plan.bytes))
    return ASVP_BAD_WORKSPACE;
  const Call call = {plan, problem->gain, problem->energy, static_cast<const char*>(x), static_cast<char*>(y),
                     static_cast<char*>(workspace), 0, 0, 0};
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  cudaError_t error = cudaSuccess;
  switch (problem->dtype) {
    case ASVP_FLOAT32: error = enqueue_float32(call, on); break;
    case ASVP_FLOAT16: error = enqueue_float16(call, on); break;
    case ASVP_BFLOAT16: error = enqueue_bfloat16(call, on); break;
    case ASVP_FLOAT64: error = enqueue_float64(call, on); break;
  }
  return error == cudaSuccess ? ASVP_OK : ASVP_CUDA_ERROR;
}

}  // extern "C"
