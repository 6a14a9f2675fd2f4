// The operator as a custom op of onnxruntime: asvp:AdaptiveSingularValuePerturbation, version 1, for each provider and type.
//
// A kernel does not change between its creation and its end and shares nothing with others, so sessions and calls of run()
// may go on at once. Threads, stream and scratch memory are the session's.

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <atomic>
#include <new>

#include "api.h"
#include "asvp.h"

namespace asvp {
namespace {

constexpr char kDomain[] = "asvp";
constexpr char kOpType[] = "AdaptiveSingularValuePerturbation";
constexpr size_t kMostDims = 32;

struct Type {
  OrtElementType element;
  asvp_dtype dtype;
  size_t bytes;
};
constexpr Type kTypes[] = {{ORT_FLOAT, ASVP_FLOAT32, 4}, {ORT_FLOAT16, ASVP_FLOAT16, 2}, {ORT_BFLOAT16, ASVP_BFLOAT16, 2},
                           {ORT_DOUBLE, ASVP_FLOAT64, 8}};
constexpr size_t kTypeCount = sizeof(kTypes) / sizeof(*kTypes);

// What onnxruntime keeps a pointer to: one of these a provider and type.
struct Op : OrtCustomOp {
  const OrtApi* api;
  const Type* type;
  bool cuda;
};

struct Kernel {
  const OrtApi* api;
  const Type* type;
  bool cuda;
  int64_t rank = 1, axis = 1;  // the defaults of asvp_export/operator/schema.py
  float gain = 1.1f, energy = 1.0f;
  OrtAllocator* allocator = nullptr;
};

#define ASVP_TRY(call) \
  if (OrtStatus* failed_ = (call)) return failed_

__attribute__((format(printf, 3, 4))) OrtStatus* error(const OrtApi* api, OrtErrorCode code, const char* format, ...) {
  char text[768];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof(text), format, arguments);
  va_end(arguments);
  return api->CreateStatus(code, text);
}

// For questions where "no" is an answer.
bool holds(const OrtApi* api, OrtStatus* status) {
  if (status) api->ReleaseStatus(status);
  return !status;
}

// ---------------------------------------------------------------- shapes

struct Shape {
  int64_t dims[kMostDims];
  size_t count;
};

OrtStatus* read(const OrtApi* api, const OrtTensorTypeAndShapeInfo* info, Shape* shape) {
  ASVP_TRY(api->GetDimensionsCount(info, &shape->count));
  if (shape->count > kMostDims)
    return error(api, ORT_INVALID_ARGUMENT, "The feature map has %zu dimensions; %s takes at most %zu.", shape->count,
                 kOpType, kMostDims);
  return api->GetDimensions(info, shape->dims, shape->count);
}

OrtStatus* read(const OrtApi* api, const OrtValue* value, Shape* shape) {
  OrtTensorTypeAndShapeInfo* info = nullptr;
  ASVP_TRY(api->GetTensorTypeAndShape(value, &info));
  OrtStatus* status = read(api, info, shape);
  api->ReleaseTensorTypeAndShapeInfo(info);
  return status;
}

// Every shape with its channels on `axis` is [n, before, c, after].
struct Split {
  int64_t n, before = 1, c, after = 1;
};

OrtStatus* split_at(const Kernel& kernel, const char* where, const Shape& shape, Split* split) {
  const int64_t count = static_cast<int64_t>(shape.count), axis = kernel.axis < 0 ? kernel.axis + count : kernel.axis;
  if (count < 2 || axis < 1 || axis >= count)
    return error(kernel.api, ORT_INVALID_ARGUMENT,
                 "%s: the feature map has %lld dimensions; axis %lld is not a channel axis of it (axis 0 is the batch).",
                 where, static_cast<long long>(count), static_cast<long long>(kernel.axis));
  split->n = shape.dims[0];
  split->c = shape.dims[axis];
  int64_t all = 1;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t dim = shape.dims[i] < 0 ? 2 : shape.dims[i];  // unknown: several
    // Zeros apart, so that no part of the product leaves int64_t either.
    if (__builtin_mul_overflow(all, dim ? dim : 1, &all))
      return error(kernel.api, ORT_INVALID_ARGUMENT, "%s: the feature map has more elements than memory can address.",
                   where);
    if (i > 0 && i != axis) (i < axis ? split->before : split->after) *= dim;
  }
  return nullptr;
}

// The output has the input's shape; its type onnxruntime has inferred. Some versions drop the status that comes from here,
// and the node's name is not known: errors are for CreateKernelV2.
OrtStatus* infer_shape(const OrtCustomOp* op, OrtShapeInferContext* context) {
  const OrtApi* api = static_cast<const Op*>(op)->api;
  OrtTensorTypeAndShapeInfo* info = nullptr;
  Shape shape;
  const char* names[kMostDims];
  if (!holds(api, api->ShapeInferContext_GetInputTypeShape(context, 0, &info)) || !holds(api, read(api, info, &shape)) ||
      !holds(api, api->GetSymbolicDimensions(info, names, shape.count)))
    return nullptr;
  bool known = shape.count > 0;  // no dimensions: a scalar, which is not ours, or a map of unknown rank
  for (size_t i = 0; i < shape.count; ++i)  // without value and name it would come out as the value -1
    known = known && (shape.dims[i] >= 0 || (names[i] && *names[i]));
  if (known) holds(api, api->ShapeInferContext_SetOutputTypeShape(context, 0, info));
  return nullptr;
}

// ---------------------------------------------------------------- attributes

template <typename T>
OrtStatus* get(const OrtApi* api, const OrtKernelInfo* info, const char* name, T* value);

template <>
OrtStatus* get(const OrtApi* api, const OrtKernelInfo* info, const char* name, int64_t* value) {
  return api->KernelInfoGetAttribute_int64(info, name, value);
}

template <>
OrtStatus* get(const OrtApi* api, const OrtKernelInfo* info, const char* name, float* value) {
  return api->KernelInfoGetAttribute_float(info, name, value);
}

// What the attributes of a node are asked through.
struct Attributes {
  const OrtApi* api;
  const OrtKernelInfo* info;
  OrtAllocator* allocator;
  const char* node;
};

// Whether there is a list, a tensor or a text of this name. (Lists of texts and graphs cannot be asked for.)
bool holds_another_type(const Attributes& of, const char* name) {
  const OrtApi* api = of.api;
  size_t length = 0;
  OrtValue* tensor = nullptr;
  if (holds(api, api->KernelInfoGetAttribute_string(of.info, name, nullptr, &length)) ||
      holds(api, api->KernelInfoGetAttributeArray_float(of.info, name, nullptr, &length)) ||
      holds(api, api->KernelInfoGetAttributeArray_int64(of.info, name, nullptr, &length)))
    return true;
  if (!holds(api, api->KernelInfoGetAttribute_tensor(of.info, name, of.allocator, &tensor))) return false;
  if (tensor) api->ReleaseValue(tensor);
  return true;
}

// Leaves the default where there is no such attribute. One of another type looks as if it were missing, so that is asked
// for too: a gain written as the integer 2, or as a list, must not become 1.1.
template <typename T, typename Other>
OrtStatus* read(const Attributes& of, const char* name, const char* type, T* value) {
  T found;
  Other other;
  if (holds(of.api, get(of.api, of.info, name, &found))) {
    *value = found;
  } else if (holds(of.api, get(of.api, of.info, name, &other)) || holds_another_type(of, name)) {
    return error(of.api, ORT_INVALID_ARGUMENT, "%s: the attribute %s has the wrong type; it must be %s.", of.node, name, type);
  }
  return nullptr;
}

// The axis fits the rank of the input where that is known before anything runs.
OrtStatus* check_axis(const Kernel& kernel, const OrtKernelInfo* info, const char* node) {
  OrtTypeInfo* type = nullptr;
  const OrtTensorTypeAndShapeInfo* tensor = nullptr;
  Shape shape = {{}, 0};
  Split split;
  if (!holds(kernel.api, kernel.api->KernelInfo_GetInputTypeInfo(info, 0, &type))) return nullptr;
  const bool known = holds(kernel.api, kernel.api->CastTypeInfoToTensorInfo(type, &tensor)) && tensor &&
                     holds(kernel.api, read(kernel.api, tensor, &shape)) && shape.count > 0;
  kernel.api->ReleaseTypeInfo(type);
  if (!known) return nullptr;
  ASVP_TRY(split_at(kernel, node, shape, &split));
  if (kernel.cuda && split.before != 1 && split.after != 1)
    return error(kernel.api, ORT_NOT_IMPLEMENTED,
                 "%s: axis %lld lies between other axes; the CUDA kernel takes axis 1 or the last one. Leave libasvp out of "
                 "this session.", node, static_cast<long long>(kernel.axis));
  return nullptr;
}

OrtStatus* configure(Kernel* kernel, const OrtKernelInfo* info) {
  const OrtApi* api = kernel->api;
  char name[256] = "", node[320];
  size_t length = sizeof(name);
  if (!holds(api, api->KernelInfo_GetNodeName(info, name, &length))) strcpy(name, "(name too long)");
  snprintf(node, sizeof(node), "Node '%s' (%s)", name, kOpType);

  const Attributes attributes = {api, info, kernel->allocator, node};
  ASVP_TRY((read<int64_t, float>(attributes, "rank", "an integer", &kernel->rank)));
  ASVP_TRY((read<float, int64_t>(attributes, "gain", "a float", &kernel->gain)));
  ASVP_TRY((read<float, int64_t>(attributes, "energy", "a float", &kernel->energy)));
  ASVP_TRY((read<int64_t, float>(attributes, "axis", "an integer", &kernel->axis)));
  if (kernel->rank < 1)
    return error(api, ORT_INVALID_ARGUMENT, "%s: rank is %lld; it must be at least 1.", node,
                 static_cast<long long>(kernel->rank));
  if (!(kernel->gain > 0) || isinf(kernel->gain))
    return error(api, ORT_INVALID_ARGUMENT, "%s: gain is %g; it must be a finite number above 0.", node,
                 static_cast<double>(kernel->gain));
  if (!(kernel->energy > 0) || kernel->energy > 1)
    return error(api, ORT_INVALID_ARGUMENT, "%s: energy is %g; it must be above 0 and at most 1.", node,
                 static_cast<double>(kernel->energy));
  if (kernel->axis == 0)
    return error(api, ORT_INVALID_ARGUMENT, "%s: axis is 0, which is the batch; it must be the channel axis (1, or -1 for "
                 "channels last).", node);
  return check_axis(*kernel, info, node);
}

void destroy_kernel(void* memory) {
  Kernel* kernel = static_cast<Kernel*>(memory);
  if (!kernel) return;
  if (kernel->allocator) kernel->api->ReleaseAllocator(kernel->allocator);
  free(kernel);
}

OrtStatus* create_kernel(const OrtCustomOp* custom_op, const OrtApi* api, const OrtKernelInfo* info, void** out) {
  const Op* op = static_cast<const Op*>(custom_op);
  void* memory = malloc(sizeof(Kernel));  // no new: nothing of the C++ library is to come along
  if (!memory) return error(api, ORT_FAIL, "%s: out of memory.", kOpType);
  Kernel* kernel = new (memory) Kernel{api, op->type, op->cuda};
  OrtStatus* status = api->KernelInfoGetAllocator(info, ORT_MEM_DEFAULT, &kernel->allocator);
  if (!status) status = configure(kernel, info);
  if (status) {
    destroy_kernel(kernel);
    return status;
  }
  *out = kernel;
  return nullptr;
}

// ---------------------------------------------------------------- a call

struct Call {
  const Kernel& kernel;
  OrtKernelContext* context;
  void* stream;
};

// Memory of the session's allocator, aligned as the operator wants it, for as long as this lives. On a stream the allocator
// has to know which, or another stream could be given the memory while kernels still use it.
class Scratch {
 public:
  explicit Scratch(const Call& call) : call_(call) {}
  Scratch(const Scratch&) = delete;
  ~Scratch() {
    if (memory_) holds(api(), api()->AllocatorFree(call_.kernel.allocator, memory_));
  }
  OrtStatus* take(size_t bytes, void** out) {
    constexpr size_t alignment = 256;
    if (call_.stream) {
      const OrtMemoryInfo* where = nullptr;
      ASVP_TRY(api()->AllocatorGetInfo(call_.kernel.allocator, &where));
      ASVP_TRY(api()->KernelContext_GetScratchBuffer(call_.context, where, bytes + alignment, &memory_));
    } else {
      ASVP_TRY(api()->AllocatorAlloc(call_.kernel.allocator, bytes + alignment, &memory_));
    }
    if (!memory_) return error(api(), ORT_FAIL, "%s: %zu bytes of scratch memory cannot be allocated.", kOpType, bytes);
    *out = reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(memory_) + alignment - 1) / alignment * alignment);
    return nullptr;
  }

 private:
  const OrtApi* api() const { return call_.kernel.api; }
  const Call& call_;
  void* memory_ = nullptr;
};

void parallel_for(void* host, asvp_task task, size_t count, void* argument) {
  const Call& call = *static_cast<const Call*>(host);
  // Refused before the first task, if ever.
  if (holds(call.kernel.api, call.kernel.api->KernelContext_ParallelFor(call.context, task, count, 0, argument))) return;
  for (size_t i = 0; i < count; ++i) task(argument, i);
}

// Between [n, before, c, after] and [n, c, before, after]; a task copies one position of n and before.
struct Turn {
  Split split;
  const char* from;
  char* to;
  size_t run;  // bytes of `after`
  bool back;
};

void turn_one(void* argument, size_t index) {
  const Turn& turn = *static_cast<const Turn*>(argument);
  const int64_t s = static_cast<int64_t>(index) / turn.split.before, b = static_cast<int64_t>(index) % turn.split.before;
  for (int64_t i = 0; i < turn.split.c; ++i) {
    const size_t mixed = ((s * turn.split.before + b) * turn.split.c + i) * turn.run;
    const size_t packed = ((s * turn.split.c + i) * turn.split.before + b) * turn.run;
    memcpy(turn.to + (turn.back ? mixed : packed), turn.from + (turn.back ? packed : mixed), turn.run);
  }
}

OrtStatus* perturb(const Call& call, const asvp_problem& problem, const void* x, void* y) {
  const OrtApi* api = call.kernel.api;
  if (const char* reason = asvp_check(&problem)) return error(api, ORT_INVALID_ARGUMENT, "%s: %s.", kOpType, reason);
  const size_t bytes = call.kernel.cuda ? asvp_workspace_cuda(&problem) : asvp_workspace_cpu(&problem);
  Scratch scratch(call);
  void* workspace = nullptr;
  ASVP_TRY(scratch.take(bytes, &workspace));
  const asvp_status status =
      call.kernel.cuda ? asvp_perturb_cuda(&problem, x, y, workspace, bytes, call.stream)
                       : asvp_perturb_cpu(&problem, x, y, workspace, bytes, parallel_for, const_cast<Call*>(&call));
  if (status == ASVP_OK) return nullptr;
  return error(api, ORT_RUNTIME_EXCEPTION, "%s: the kernel failed (asvp_status %d).", kOpType, static_cast<int>(status));
}

// Axes on both sides of the channels: the positions have no single stride, so the map is turned into a copy and back.
OrtStatus* perturb_turned(const Call& call, const Split& split, asvp_problem problem, const char* x, char* y) {
  if (call.kernel.cuda)
    return error(call.kernel.api, ORT_NOT_IMPLEMENTED, "%s: the CUDA kernel takes axis 1 or the last one, not axis %lld.",
                 kOpType, static_cast<long long>(call.kernel.axis));
  problem.channel_stride = problem.l;
  problem.position_stride = 1;
  const size_t width = call.kernel.type->bytes;
  Scratch scratch(call);
  void* copy = nullptr;
  ASVP_TRY(scratch.take(static_cast<size_t>(problem.n * problem.c * problem.l) * width, &copy));
  char* const packed = static_cast<char*>(copy);
  Turn there = {split, x, packed, static_cast<size_t>(split.after) * width, false};
  Turn back = {split, packed, y, there.run, true};
  const size_t tasks = static_cast<size_t>(split.n * split.before);
  parallel_for(const_cast<Call*>(&call), turn_one, tasks, &there);
  ASVP_TRY(perturb(call, problem, packed, packed));
  parallel_for(const_cast<Call*>(&call), turn_one, tasks, &back);
  return nullptr;
}

OrtStatus* compute(void* memory, OrtKernelContext* context) {
  const Kernel& kernel = *static_cast<const Kernel*>(memory);
  const OrtApi* api = kernel.api;
  const OrtValue* input = nullptr;
  OrtValue* output = nullptr;
  Shape shape;
  Split split;
  ASVP_TRY(api->KernelContext_GetInput(context, 0, &input));
  ASVP_TRY(read(api, input, &shape));
  ASVP_TRY(split_at(kernel, kOpType, shape, &split));
  ASVP_TRY(api->KernelContext_GetOutput(context, 0, shape.dims, shape.count, &output));
  const int64_t l = split.before * split.after, sample = split.c * l;
  if (split.n == 0 || sample == 0) return nullptr;

  void *x = nullptr, *y = nullptr;
  ASVP_TRY(api->GetTensorMutableData(const_cast<OrtValue*>(input), &x));
  ASVP_TRY(api->GetTensorMutableData(output, &y));
  Call call = {kernel, context, nullptr};
  if (kernel.cuda) ASVP_TRY(api->KernelContext_GetGPUComputeStream(context, &call.stream));
  const bool tokens = split.after == 1;
  const asvp_problem problem = {split.n, split.c, l, sample, tokens ? 1 : l, tokens ? split.c : 1, kernel.type->dtype,
                                kernel.rank, kernel.gain, kernel.energy};
  if (split.before > 1 && !tokens)
    return perturb_turned(call, split, problem, static_cast<const char*>(x), static_cast<char*>(y));
  return perturb(call, problem, x, y);
}

// ---------------------------------------------------------------- the op

const char* name(const OrtCustomOp*) { return kOpType; }
const char* provider(const OrtCustomOp* op) {
  return static_cast<const Op*>(op)->cuda ? "CUDAExecutionProvider" : "CPUExecutionProvider";
}
OrtElementType element_type(const OrtCustomOp* op, size_t) { return static_cast<const Op*>(op)->type->element; }
size_t one(const OrtCustomOp*) { return 1; }
int one_int(const OrtCustomOp*) { return 1; }
OrtCharacteristic required(const OrtCustomOp*, size_t) { return ORT_REQUIRED; }
OrtMemType default_memory(const OrtCustomOp*, size_t) { return ORT_MEM_DEFAULT; }

// The output may lie where the input does: a map less in memory where nobody else reads the input.
size_t in_place(int** inputs, int** outputs) {
  static int first = 0;
  *inputs = *outputs = &first;
  return 1;
}
void keep(int*, int*) {}

Op make_op(const OrtApi* api, const Type& type, bool cuda) {
  Op op = {};
  op.version = kApiVersion;
  op.GetName = name;
  op.GetExecutionProviderType = provider;
  op.GetInputType = op.GetOutputType = element_type;
  op.GetInputTypeCount = op.GetOutputTypeCount = one;
  op.GetInputCharacteristic = op.GetOutputCharacteristic = required;
  op.GetInputMemoryType = default_memory;
  op.GetVariadicInputMinArity = op.GetVariadicOutputMinArity = one_int;
  op.GetVariadicInputHomogeneity = op.GetVariadicOutputHomogeneity = one_int;
  op.CreateKernelV2 = create_kernel;
  op.KernelComputeV2 = compute;
  op.KernelDestroy = destroy_kernel;
  op.InferOutputShapeFn = infer_shape;
  op.GetStartVersion = one_int;
  op.GetMayInplace = in_place;
  op.ReleaseMayInplace = keep;
  op.api = api;
  op.type = &type;
  op.cuda = cuda;
  return op;
}

// ---------------------------------------------------------------- registration

// The ops and their domain for one onnxruntime. Session options point to the domain and sessions to the ops, and nothing
// tells us when they go; they hold the library open, though. So the domain lives until it is unloaded; the ops are static,
// because a session may still read them while the process exits.
struct Registration {
  const OrtApi* api;
  OrtCustomOpDomain* domain;
  Op ops[2 * kTypeCount];

  ~Registration() { empty(); }
  void empty() {
    if (domain) api->ReleaseCustomOpDomain(domain);
    domain = nullptr;
    api = nullptr;
  }
  OrtStatus* fill(const OrtApi* runtime, int providers) {
    api = runtime;
    ASVP_TRY(api->CreateCustomOpDomain(kDomain, &domain));
    for (int cuda = 0; cuda < providers; ++cuda)
      for (size_t t = 0; t < kTypeCount; ++t) {
        Op& op = ops[cuda * kTypeCount + t];
        op = make_op(api, kTypes[t], cuda != 0);
        ASVP_TRY(api->CustomOpDomain_Add(domain, &op));
      }
    return nullptr;
  }
};

Registration registrations[4];  // a process seldom holds two onnxruntimes
std::atomic_flag registering = ATOMIC_FLAG_INIT;

OrtStatus* registration_of(const OrtApi* api, int providers, Registration** out) {
  for (Registration& here : registrations) {
    *out = &here;
    if (here.api == api) return nullptr;
    if (here.api) continue;
    OrtStatus* status = here.fill(api, providers);
    if (status) here.empty();
    return status;
  }
  return error(api, ORT_FAIL, "libasvp: more than %zu copies of onnxruntime use it in this process.",
               sizeof(registrations) / sizeof(*registrations));
}

OrtStatus* register_ops(OrtSessionOptions* options, const OrtApi* api) {
  const int providers = asvp_cuda_unavailable() ? 1 : 2;
  Registration* registration = nullptr;
  while (registering.test_and_set(std::memory_order_acquire)) {
  }
  OrtStatus* status = registration_of(api, providers, &registration);
  registering.clear(std::memory_order_release);
  if (status) return status;
  // Options that hold a domain twice make no session, and it is easy to register again for the next one: leave a mark.
  constexpr char mark[] = "asvp.registered";
  int marked = 0;
  ASVP_TRY(api->HasSessionConfigEntry(options, mark, &marked));
  if (marked) return nullptr;
  ASVP_TRY(api->AddCustomOpDomain(options, registration->domain));
  return api->AddSessionConfigEntry(options, mark, "1");
}

}  // namespace
}  // namespace asvp

extern "C" ASVP_API OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  if (const OrtApi* api = base->GetApi(kApiVersion)) return asvp::register_ops(options, api);
  const OrtApi* oldest = base->GetApi(1);  // CreateStatus is in every version
  if (!oldest) return nullptr;  // no way to tell: the session will say that it does not know the op
  return asvp::error(oldest, ORT_FAIL, "libasvp needs onnxruntime 1.%u or later; this is %s.", kApiVersion,
                     base->GetVersionString());
}
