// A library that has the op in float32 for one provider and nothing else: what does onnxruntime make of the rest? The kernel
// fills its output with 42.
#include "../src/ort/api.h"

namespace {

const OrtApi* api;

OrtStatus* create(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*, void** kernel) {
  *kernel = nullptr;
  return nullptr;
}

OrtStatus* compute(void*, OrtKernelContext* context) {
  const OrtValue* x = nullptr;
  OrtValue* y = nullptr;
  OrtTensorTypeAndShapeInfo* info = nullptr;
  void* out = nullptr;
  int64_t dims[8], elements = 1;
  size_t count = 0;
  if (OrtStatus* status = api->KernelContext_GetInput(context, 0, &x)) return status;
  if (OrtStatus* status = api->GetTensorTypeAndShape(x, &info)) return status;
  OrtStatus* status = api->GetDimensionsCount(info, &count);
  if (!status && count > 8) status = api->CreateStatus(ORT_FAIL, "more than 8 dimensions");
  if (!status) status = api->GetDimensions(info, dims, count);
  api->ReleaseTensorTypeAndShapeInfo(info);
  if (!status) status = api->KernelContext_GetOutput(context, 0, dims, count, &y);
  if (!status) status = api->GetTensorMutableData(y, &out);
  if (status) return status;
  for (size_t i = 0; i < count; ++i) elements *= dims[i];
  for (int64_t i = 0; i < elements; ++i) static_cast<float*>(out)[i] = 42;
  return nullptr;
}

OrtCustomOp make_op() {
  OrtCustomOp op = {};
  op.version = kApiVersion;
  op.GetName = [](const OrtCustomOp*) { return "AdaptiveSingularValuePerturbation"; };
  op.GetExecutionProviderType = [](const OrtCustomOp*) { return REDUCED_PROVIDER; };
  op.GetInputType = op.GetOutputType = [](const OrtCustomOp*, size_t) { return ORT_FLOAT; };
  op.GetInputTypeCount = op.GetOutputTypeCount = [](const OrtCustomOp*) -> size_t { return 1; };
  op.GetInputCharacteristic = op.GetOutputCharacteristic = [](const OrtCustomOp*, size_t) { return ORT_REQUIRED; };
  op.GetInputMemoryType = [](const OrtCustomOp*, size_t) { return ORT_MEM_DEFAULT; };
  op.CreateKernelV2 = create;
  op.KernelComputeV2 = compute;
  op.KernelDestroy = [](void*) {};
  return op;
}

}  // namespace

extern "C" __attribute__((visibility("default"))) OrtStatus* RegisterCustomOps(OrtSessionOptions* options,
                                                                                const OrtApiBase* base) {
  static const OrtCustomOp op = make_op();
  OrtCustomOpDomain* domain = nullptr;  // never released: it lives as long as the tests
  api = base->GetApi(kApiVersion);
  if (OrtStatus* status = api->CreateCustomOpDomain("asvp", &domain)) return status;
  if (OrtStatus* status = api->CustomOpDomain_Add(domain, &op)) return status;
  return api->AddCustomOpDomain(options, domain);
}
