// The CUDA half of the C ABI for a library that was built without nvcc.

#include "asvp.h"

extern "C" {

const char* asvp_cuda_unavailable(void) { return "libasvp was built without CUDA"; }

size_t asvp_workspace_cuda(const asvp_problem*) { return 0; }

asvp_status asvp_perturb_cuda(const asvp_problem*, const void*, void*, void*, size_t, void*) { return ASVP_CUDA_ERROR; }

}  // extern "C"
