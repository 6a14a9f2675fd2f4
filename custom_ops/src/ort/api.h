// What a custom op needs of onnxruntime's C API, told by its places: no onnxruntime header is needed to build this library.
//
// OrtApi is a table of function pointers whose order never changes; entries are only added at its end, with each version.
// kApiVersion is the lowest that has all that stands here (18, from KernelInfoGetAllocator on): onnxruntime 1.18.
#ifndef ASVP_ORT_API_H_
#define ASVP_ORT_API_H_

#include <stddef.h>
#include <stdint.h>

constexpr uint32_t kApiVersion = 18;

struct OrtStatus;  // NULL: all is well
struct OrtSessionOptions;
struct OrtCustomOpDomain;
struct OrtKernelInfo;
struct OrtKernelContext;
struct OrtShapeInferContext;
struct OrtValue;
struct OrtTypeInfo;
struct OrtTensorTypeAndShapeInfo;
struct OrtMemoryInfo;
struct OrtAllocator;
struct OrtApi;

enum OrtErrorCode { ORT_FAIL = 1, ORT_INVALID_ARGUMENT = 2, ORT_RUNTIME_EXCEPTION = 6, ORT_NOT_IMPLEMENTED = 9 };
enum OrtElementType { ORT_FLOAT = 1, ORT_FLOAT16 = 10, ORT_DOUBLE = 11, ORT_BFLOAT16 = 16 };
enum OrtCharacteristic { ORT_REQUIRED = 0 };
enum OrtMemType { ORT_MEM_DEFAULT = 0 };  // the provider's own memory

struct OrtApiBase {
  const OrtApi* (*GetApi)(uint32_t version);  // NULL: newer than this onnxruntime
  const char* (*GetVersionString)();
};

template <int count>
using Skip = void* [count];

struct OrtApi {
  OrtStatus* (*CreateStatus)(OrtErrorCode code, const char* message);
  Skip<25> skip_1;
  OrtStatus* (*CreateCustomOpDomain)(const char* name, OrtCustomOpDomain** out);
  OrtStatus* (*CustomOpDomain_Add)(OrtCustomOpDomain* domain, const struct OrtCustomOp* op);
  OrtStatus* (*AddCustomOpDomain)(OrtSessionOptions* options, OrtCustomOpDomain* domain);
  Skip<22> skip_29;
  OrtStatus* (*GetTensorMutableData)(OrtValue* value, void** out);
  Skip<3> skip_52;
  // A part of `info`, not to be released.
  OrtStatus* (*CastTypeInfoToTensorInfo)(const OrtTypeInfo* info, const OrtTensorTypeAndShapeInfo** out);
  Skip<5> skip_56;
  OrtStatus* (*GetDimensionsCount)(const OrtTensorTypeAndShapeInfo* info, size_t* out);
  OrtStatus* (*GetDimensions)(const OrtTensorTypeAndShapeInfo* info, int64_t* out, size_t count);  // -1: unknown
  OrtStatus* (*GetSymbolicDimensions)(const OrtTensorTypeAndShapeInfo* info, const char** out, size_t count);
  void* skip_64;
  OrtStatus* (*GetTensorTypeAndShape)(const OrtValue* value, OrtTensorTypeAndShapeInfo** out);
  Skip<9> skip_66;
  OrtStatus* (*AllocatorAlloc)(OrtAllocator* allocator, size_t bytes, void** out);
  OrtStatus* (*AllocatorFree)(OrtAllocator* allocator, void* memory);
  OrtStatus* (*AllocatorGetInfo)(const OrtAllocator* allocator, const OrtMemoryInfo** out);
  Skip<7> skip_78;
  OrtStatus* (*KernelInfoGetAttribute_float)(const OrtKernelInfo* info, const char* name, float* out);
  OrtStatus* (*KernelInfoGetAttribute_int64)(const OrtKernelInfo* info, const char* name, int64_t* out);
  OrtStatus* (*KernelInfoGetAttribute_string)(const OrtKernelInfo* info, const char* name, char* out, size_t* size);
  Skip<2> skip_88;
  OrtStatus* (*KernelContext_GetInput)(const OrtKernelContext* context, size_t index, const OrtValue** out);
  OrtStatus* (*KernelContext_GetOutput)(OrtKernelContext* context, size_t index, const int64_t* dims, size_t count,
                                        OrtValue** out);
  void* skip_92;
  void (*ReleaseStatus)(OrtStatus* status);
  Skip<2> skip_94;
  void (*ReleaseValue)(OrtValue* value);
  void* skip_97;
  void (*ReleaseTypeInfo)(OrtTypeInfo* info);
  void (*ReleaseTensorTypeAndShapeInfo)(OrtTensorTypeAndShapeInfo* info);
  void* skip_100;
  void (*ReleaseCustomOpDomain)(OrtCustomOpDomain* domain);
  Skip<28> skip_102;
  OrtStatus* (*AddSessionConfigEntry)(OrtSessionOptions* options, const char* key, const char* value);
  void* skip_131;
  void (*ReleaseAllocator)(OrtAllocator* allocator);
  Skip<29> skip_133;
  // out NULL: the count alone.
  OrtStatus* (*KernelInfoGetAttributeArray_float)(const OrtKernelInfo* info, const char* name, float* out, size_t* count);
  OrtStatus* (*KernelInfoGetAttributeArray_int64)(const OrtKernelInfo* info, const char* name, int64_t* out, size_t* count);
  Skip<29> skip_164;
  OrtStatus* (*KernelContext_GetGPUComputeStream)(const OrtKernelContext* context, void** out);
  Skip<40> skip_194;
  OrtStatus* (*KernelInfo_GetInputTypeInfo)(const OrtKernelInfo* info, size_t index, OrtTypeInfo** out);
  void* skip_235;
  OrtStatus* (*KernelInfoGetAttribute_tensor)(const OrtKernelInfo* info, const char* name, OrtAllocator* allocator,
                                              OrtValue** out);
  OrtStatus* (*HasSessionConfigEntry)(const OrtSessionOptions* options, const char* key, int* out);
  Skip<6> skip_238;
  OrtStatus* (*KernelInfo_GetNodeName)(const OrtKernelInfo* info, char* out, size_t* size);
  Skip<23> skip_245;
  OrtStatus* (*ShapeInferContext_GetInputTypeShape)(const OrtShapeInferContext* context, size_t index,
                                                    OrtTensorTypeAndShapeInfo** out);  // a part of the context
  void* skip_269;
  OrtStatus* (*ShapeInferContext_SetOutputTypeShape)(const OrtShapeInferContext* context, size_t index,
                                                     const OrtTensorTypeAndShapeInfo* info);
  Skip<3> skip_271;
  // batches 0: one task after the other, as threads come free.
  OrtStatus* (*KernelContext_ParallelFor)(const OrtKernelContext* context, void (*task)(void*, size_t), size_t count,
                                          size_t batches, void* argument);
  Skip<2> skip_275;
  OrtStatus* (*KernelContext_GetScratchBuffer)(const OrtKernelContext* context, const OrtMemoryInfo* where, size_t bytes,
                                               void** out);  // some versions take it that there is a stream
  OrtStatus* (*KernelInfoGetAllocator)(const OrtKernelInfo* info, OrtMemType type, OrtAllocator** out);
};

#define ASVP_AT(entry, slot) static_assert(offsetof(OrtApi, entry) == (slot) * sizeof(void*), #entry)
ASVP_AT(CreateCustomOpDomain, 26);
ASVP_AT(GetTensorMutableData, 51);
ASVP_AT(CastTypeInfoToTensorInfo, 55);
ASVP_AT(GetDimensionsCount, 61);
ASVP_AT(GetTensorTypeAndShape, 65);
ASVP_AT(AllocatorAlloc, 75);
ASVP_AT(KernelInfoGetAttribute_float, 85);
ASVP_AT(KernelContext_GetInput, 90);
ASVP_AT(ReleaseStatus, 93);
ASVP_AT(ReleaseValue, 96);
ASVP_AT(ReleaseTypeInfo, 98);
ASVP_AT(ReleaseCustomOpDomain, 101);
ASVP_AT(AddSessionConfigEntry, 130);
ASVP_AT(ReleaseAllocator, 132);
ASVP_AT(KernelInfoGetAttributeArray_float, 162);
ASVP_AT(KernelContext_GetGPUComputeStream, 193);
ASVP_AT(KernelInfo_GetInputTypeInfo, 234);
ASVP_AT(KernelInfoGetAttribute_tensor, 236);
ASVP_AT(HasSessionConfigEntry, 237);
ASVP_AT(KernelInfo_GetNodeName, 244);
ASVP_AT(ShapeInferContext_GetInputTypeShape, 268);
ASVP_AT(ShapeInferContext_SetOutputTypeShape, 270);
ASVP_AT(KernelContext_ParallelFor, 274);
ASVP_AT(KernelContext_GetScratchBuffer, 277);
ASVP_AT(KernelInfoGetAllocator, 278);
#undef ASVP_AT

// Read by onnxruntime up to what `version` had; with the V2 callbacks those without it are never called.
struct OrtCustomOp {
  uint32_t version;
  void* (*CreateKernel)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*);
  const char* (*GetName)(const OrtCustomOp*);
  const char* (*GetExecutionProviderType)(const OrtCustomOp*);  // NULL: the CPU
  OrtElementType (*GetInputType)(const OrtCustomOp*, size_t index);
  size_t (*GetInputTypeCount)(const OrtCustomOp*);
  OrtElementType (*GetOutputType)(const OrtCustomOp*, size_t index);
  size_t (*GetOutputTypeCount)(const OrtCustomOp*);
  void (*KernelCompute)(void* kernel, OrtKernelContext*);
  void (*KernelDestroy)(void* kernel);
  OrtCharacteristic (*GetInputCharacteristic)(const OrtCustomOp*, size_t index);
  OrtCharacteristic (*GetOutputCharacteristic)(const OrtCustomOp*, size_t index);
  OrtMemType (*GetInputMemoryType)(const OrtCustomOp*, size_t index);
  int (*GetVariadicInputMinArity)(const OrtCustomOp*);
  int (*GetVariadicInputHomogeneity)(const OrtCustomOp*);
  int (*GetVariadicOutputMinArity)(const OrtCustomOp*);
  int (*GetVariadicOutputHomogeneity)(const OrtCustomOp*);
  OrtStatus* (*CreateKernelV2)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*, void** kernel);
  OrtStatus* (*KernelComputeV2)(void* kernel, OrtKernelContext*);
  OrtStatus* (*InferOutputShapeFn)(const OrtCustomOp*, OrtShapeInferContext*);
  int (*GetStartVersion)(const OrtCustomOp*);
  int (*GetEndVersion)(const OrtCustomOp*);
  size_t (*GetMayInplace)(int** inputs, int** outputs);
  void (*ReleaseMayInplace)(int* inputs, int* outputs);
  size_t (*GetAliasMap)(int** inputs, int** outputs);
  void (*ReleaseAliasMap)(int* inputs, int* outputs);
};

#endif  // ASVP_ORT_API_H_
