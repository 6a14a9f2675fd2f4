// A host on onnxruntime's C API alone: its table by places, as src/ort/api.h has it for the library, and models of the op
// written byte by byte. What goes wrong ends the program with onnxruntime's own message, unless a function says otherwise.
#ifndef ASVP_TESTS_HOST_H_
#define ASVP_TESTS_HOST_H_

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "../src/ort/api.h"

struct OrtEnv;
struct OrtSession;
struct OrtRunOptions;

// The same table as OrtApi, seen by a host.
struct HostApi {
  Skip<2> skip_0;
  const char* (*GetErrorMessage)(const OrtStatus* status);
  OrtStatus* (*CreateEnv)(int severity, const char* name, OrtEnv** out);
  Skip<4> skip_4;
  OrtStatus* (*CreateSessionFromArray)(const OrtEnv*, const void* model, size_t bytes, const OrtSessionOptions*, OrtSession**);
  OrtStatus* (*Run)(OrtSession*, const OrtRunOptions*, const char* const* inputs, const OrtValue* const* values, size_t count,
                    const char* const* outputs, size_t output_count, OrtValue** results);
  OrtStatus* (*CreateSessionOptions)(OrtSessionOptions** out);
  Skip<11> skip_11;
  OrtStatus* (*SetSessionLogSeverityLevel)(OrtSessionOptions*, int severity);
  void* skip_23;
  OrtStatus* (*SetIntraOpNumThreads)(OrtSessionOptions*, int threads);
  Skip<4> skip_25;
  OrtStatus* (*RegisterCustomOpsLibrary)(OrtSessionOptions*, const char* path, void** handle);
  Skip<19> skip_30;
  OrtStatus* (*CreateTensorWithDataAsOrtValue)(const OrtMemoryInfo*, void* data, size_t bytes, const int64_t* dims,
                                               size_t count, OrtElementType type, OrtValue** out);
  void* skip_50;
  OrtStatus* (*GetTensorMutableData)(OrtValue* value, void** out);
  Skip<17> skip_52;
  OrtStatus* (*CreateCpuMemoryInfo)(int allocator, int type, OrtMemoryInfo** out);
  Skip<22> skip_70;
  void (*ReleaseEnv)(OrtEnv*);
  void (*ReleaseStatus)(OrtStatus*);
  void (*ReleaseMemoryInfo)(OrtMemoryInfo*);
  void (*ReleaseSession)(OrtSession*);
  void (*ReleaseValue)(OrtValue*);
  Skip<3> skip_97;
  void (*ReleaseSessionOptions)(OrtSessionOptions*);
};
static_assert(offsetof(HostApi, CreateSessionFromArray) == 8 * sizeof(void*), "");
static_assert(offsetof(HostApi, SetSessionLogSeverityLevel) == 22 * sizeof(void*), "");
static_assert(offsetof(HostApi, SetIntraOpNumThreads) == 24 * sizeof(void*), "");
static_assert(offsetof(HostApi, RegisterCustomOpsLibrary) == 29 * sizeof(void*), "");
static_assert(offsetof(HostApi, CreateTensorWithDataAsOrtValue) == 49 * sizeof(void*), "");
static_assert(offsetof(HostApi, GetTensorMutableData) == offsetof(OrtApi, GetTensorMutableData), "");
static_assert(offsetof(HostApi, CreateCpuMemoryInfo) == 69 * sizeof(void*), "");
static_assert(offsetof(HostApi, ReleaseStatus) == offsetof(OrtApi, ReleaseStatus), "");
static_assert(offsetof(HostApi, ReleaseSessionOptions) == 100 * sizeof(void*), "");

// ---------------------------------------------------------------- models

// Protocol buffers, as far as a model needs them.
struct Message {
  std::string bytes;

  Message& varint(uint64_t value) {
    for (; value > 127; value >>= 7) bytes += static_cast<char>(value | 128);
    bytes += static_cast<char>(value);
    return *this;
  }
  Message& number(int field, int64_t value) { return varint(field << 3).varint(static_cast<uint64_t>(value)); }
  Message& fixed32(int field, float value) {
    varint(field << 3 | 5);
    bytes.append(reinterpret_cast<const char*>(&value), 4);
    return *this;
  }
  Message& text(int field, const std::string& value) {
    varint(field << 3 | 2).varint(value.size());
    bytes += value;
    return *this;
  }
  Message& message(int field, const Message& value) { return text(field, value.bytes); }
};

// AttributeProto. Its types: 1 FLOAT, 2 INT, 3 STRING, 4 TENSOR, 6 FLOATS, 7 INTS, 8 STRINGS.
inline Message attribute(const std::string& name, int type) { return Message().text(1, name).number(20, type); }
inline Message float_attribute(const std::string& name, float value) { return attribute(name, 1).fixed32(2, value); }
inline Message int_attribute(const std::string& name, int64_t value) { return attribute(name, 2).number(3, value); }

// ValueInfoProto. A dimension below 0 has no value; a name makes it symbolic.
inline Message value_info(const std::string& name, int type, const std::vector<int64_t>* dims) {
  Message shape;
  for (int64_t dim : dims ? *dims : std::vector<int64_t>()) shape.message(1, dim < 0 ? Message() : Message().number(1, dim));
  Message tensor = Message().number(1, type);
  if (dims) tensor.message(2, shape);
  return Message().text(1, name).message(2, Message().message(1, tensor));
}

struct Node {
  std::string name = "the_node";
  std::vector<Message> attributes;
};

// ModelProto of X -> node -> node ... -> Y. The output's type alone is declared.
inline std::string model_of(const std::vector<Node>& nodes, OrtElementType type, const std::vector<int64_t>* dims) {
  Message graph;
  for (size_t i = 0; i < nodes.size(); ++i) {
    Message node;
    node.text(1, i == 0 ? "X" : "t" + std::to_string(i)).text(2, i + 1 == nodes.size() ? "Y" : "t" + std::to_string(i + 1));
    node.text(3, nodes[i].name).text(4, "AdaptiveSingularValuePerturbation").text(7, "asvp");
    for (const Message& one : nodes[i].attributes) node.message(5, one);
    graph.message(1, node);
  }
  graph.text(2, "graph").message(11, value_info("X", type, dims)).message(12, value_info("Y", type, nullptr));
  return Message()
      .number(1, 10)
      .message(7, graph)
      .message(8, Message().text(1, "").number(2, 18))
      .message(8, Message().text(1, "asvp").number(2, 1))
      .bytes;
}

// ---------------------------------------------------------------- onnxruntime

class Runtime {
 public:
  typedef std::unique_ptr<OrtSession, void (*)(OrtSession*)> Session;
  typedef std::unique_ptr<OrtSessionOptions, void (*)(OrtSessionOptions*)> Options;

  // `path`: libonnxruntime, which stays loaded.
  explicit Runtime(const char* path) {
    void* handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!handle) fail(dlerror());
    const auto entry = reinterpret_cast<const OrtApiBase* (*)()>(dlsym(handle, "OrtGetApiBase"));
    if (!entry) fail(dlerror());
    base = entry();
    api = reinterpret_cast<const HostApi*>(base->GetApi(kApiVersion));
    if (!api) fail("this onnxruntime is too old");
    must(api->CreateEnv(4, "asvp", &env_));
    must(api->CreateCpuMemoryInfo(1, 0, &memory_));
  }
  ~Runtime() {
    api->ReleaseMemoryInfo(memory_);
    api->ReleaseEnv(env_);
  }
  Runtime(const Runtime&) = delete;

  [[noreturn]] static void fail(const char* why) {
    fprintf(stderr, "%s\n", why);
    exit(1);
  }
  void must(OrtStatus* status) const {
    if (status) fail(api->GetErrorMessage(status));
  }
  // The message of a failure, or nothing.
  std::string message(OrtStatus* status) const {
    const std::string text = status ? api->GetErrorMessage(status) : "";
    api->ReleaseStatus(status);
    return text;
  }

  Options options(int threads) const {
    OrtSessionOptions* made = nullptr;
    must(api->CreateSessionOptions(&made));
    must(api->SetIntraOpNumThreads(made, threads));
    must(api->SetSessionLogSeverityLevel(made, 4));
    return Options(made, api->ReleaseSessionOptions);
  }
  // NULL, and onnxruntime's reason.
  std::pair<Session, std::string> open(const std::string& model, const Options& options) const {
    OrtSession* made = nullptr;
    OrtStatus* status = api->CreateSessionFromArray(env_, model.data(), model.size(), options.get(), &made);
    return {Session(made, api->ReleaseSession), message(status)};
  }
  // Runs X -> Y on elements of `width` bytes; returns the output's bytes, and onnxruntime's reason where there are none.
  std::pair<std::string, std::string> run(const Session& session, OrtElementType type, size_t width,
                                          const std::vector<int64_t>& dims, const void* x) const {
    const char *input = "X", *output = "Y";
    size_t bytes = width;
    for (int64_t dim : dims) bytes *= static_cast<size_t>(dim);
    OrtValue *in = nullptr, *out = nullptr;
    must(api->CreateTensorWithDataAsOrtValue(memory_, const_cast<void*>(x), bytes, dims.data(), dims.size(), type, &in));
    const std::string reason = message(api->Run(session.get(), nullptr, &input, &in, 1, &output, 1, &out));
    std::string result;
    if (reason.empty()) {
      void* data = nullptr;
      must(api->GetTensorMutableData(out, &data));
      result.assign(static_cast<const char*>(data), bytes);
      api->ReleaseValue(out);
    }
    api->ReleaseValue(in);
    return {result, reason};
  }

  const OrtApiBase* base;
  const HostApi* api;

 private:
  OrtEnv* env_ = nullptr;
  OrtMemoryInfo* memory_ = nullptr;
};

#endif  // ASVP_TESTS_HOST_H_
