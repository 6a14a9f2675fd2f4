/* The C ABI of libasvp: the ASVP operator on plain pointers, for any host. */
#ifndef ASVP_H_
#define ASVP_H_

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(_WIN32)
#define ASVP_API __declspec(dllexport)
#else
#define ASVP_API __attribute__((visibility("default")))
#endif

/* Raised whenever a signature or the meaning of one changes. */
#define ASVP_ABI_VERSION 1

typedef enum { ASVP_FLOAT32 = 0, ASVP_FLOAT16 = 1, ASVP_BFLOAT16 = 2, ASVP_FLOAT64 = 3 } asvp_dtype;

typedef enum { ASVP_OK = 0, ASVP_BAD_ARGUMENT = 1, ASVP_BAD_WORKSPACE = 2, ASVP_CUDA_ERROR = 3 } asvp_status;

/* One call of the operator: n matrices of c channels by l positions.
 *
 * Element (i, j) of matrix s lies at  s * sample_stride + i * channel_stride + j * position_stride  (in elements), the same in
 * the input and in the output. Contiguous N,C,H,W: (c * l, l, 1); N,L,C tokens, N,H,W,C and channels-last: (c * l, 1, c). */
typedef struct {
  int64_t n, c, l;
  int64_t sample_stride, channel_stride, position_stride;
  int dtype;     /* an asvp_dtype; an int, since a host may hand in any value */
  int64_t rank;  /* at least 1; more than min(c, l) counts as min(c, l) */
  double gain;   /* finite, above 0 */
  double energy; /* in (0, 1]; 1: always `rank` */
} asvp_problem;

/* How the host lends its threads: call task(argument, i) once for every i in [0, count), in any order, on any threads, and
 * return when all have returned. NULL: one thread. The bits of a result do not depend on it. */
typedef void (*asvp_task)(void* argument, size_t index);
typedef void (*asvp_parallel_for)(void* host, asvp_task task, size_t count, void* argument);

/* Hosts on OpenMP, as PyTorch on most systems, lend their threads with asvp_openmp_for and one of these as `host`. */
typedef struct {
  /* GOMP_parallel of the very OpenMP library that the host uses (GCC's, LLVM's and Intel's have it): a second pool of threads
   * would fight with the host's for the processors. */
  void (*parallel)(void (*body)(void*), void* argument, unsigned threads, unsigned flags);
  unsigned threads;
} asvp_openmp;

/* An asvp_parallel_for. */
ASVP_API void asvp_openmp_for(void* host, asvp_task task, size_t count, void* argument);

/* ASVP_ABI_VERSION of the library that was loaded. */
ASVP_API int asvp_abi_version(void);

/* A static string: "avx512", "avx2" or "portable". */
ASVP_API const char* asvp_cpu_kernels(void);

/* What is wrong with a problem, as a static string, or NULL. */
ASVP_API const char* asvp_check(const asvp_problem* problem);

/* Bytes of scratch memory, aligned to 64, that asvp_perturb_cpu wants. */
ASVP_API size_t asvp_workspace_cpu(const asvp_problem* problem);

/* y = operator(x). x and y may be unaligned, and may be the same memory. Never allocates. */
ASVP_API asvp_status asvp_perturb_cpu(const asvp_problem* problem, const void* x, void* y, void* workspace,
                                      size_t workspace_bytes, asvp_parallel_for parallel_for, void* host);

/* ---------------------------------------------------------------- CUDA */

/* Why asvp_perturb_cuda cannot be used here, as a static string of a few words (built without CUDA, no GPU, a driver too old),
 * or NULL. Looked up once; never prints, never throws. */
ASVP_API const char* asvp_cuda_unavailable(void);

/* Bytes of device memory, aligned to 256, that asvp_perturb_cuda wants on the current device; 0 where CUDA is unavailable, and
 * for more channels or components than its kernels hold (8192 and about a thousand). */
ASVP_API size_t asvp_workspace_cuda(const asvp_problem* problem);

/* y = operator(x), all in device memory, on `stream` (a cudaStream_t; NULL: the default stream) of the current device. x and y
 * may be the same memory, and need the alignment of their elements only (refused without it). Never allocates, never synchronises, may be captured
 * into a graph (after one call of its kind outside, which loads the kernels); what fails on the device comes back with a later
 * call, as always with CUDA. */
ASVP_API asvp_status asvp_perturb_cuda(const asvp_problem* problem, const void* x, void* y, void* workspace,
                                       size_t workspace_bytes, void* stream);

#ifdef __cplusplus
}
#endif

#endif /* ASVP_H_ */
