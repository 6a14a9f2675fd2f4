// Heavy use of the library as a server uses it: onnxruntime's C API alone, many threads, many runs, sessions that come and go,
// a fork, two copies of the library. Each part prints one line of what it did, and ends the program where a promise breaks.
//
//     asvp_soak ONNXRUNTIME LIBASVP COPY_OF_LIBASVP PART COUNT
//
// COUNT: runs a thread (threads), runs (memory), sessions (sessions), rounds (fork, copies).
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <string>
#include <thread>
#include <vector>

#include "host.h"

namespace {

constexpr int kThreads = 8;
// Threads of a session. The thread sanitizer does not see how onnxruntime, which is built without it, hands work to its own
// threads; that hosts call at once it sees. (Tasks on several threads: sanitize.cpp.)
#if defined(__SANITIZE_THREAD__)
constexpr int kPool = 1;
#else
constexpr int kPool = 2;
#endif

// The session goes before the library does.
struct Session {
  std::unique_ptr<void, int (*)(void*)> library;
  Runtime::Session session;
};

struct Map {
  std::vector<int64_t> dims;
  std::vector<float> values;

  Map(std::vector<int64_t> sizes, uint32_t seed) : dims(std::move(sizes)) {
    size_t count = 1;
    for (int64_t dim : dims) count *= static_cast<size_t>(dim);
    values.resize(count);
    for (float& value : values) {
      seed = seed * 1664525u + 1013904223u;
      value = static_cast<float>(seed >> 8) * 0x1p-23f - 1.0f;
    }
  }
};

Node node(const char* name, int64_t axis) {
  Node made;
  made.name = name;
  made.attributes = {int_attribute("rank", 4), float_attribute("gain", 100), int_attribute("axis", axis)};
  return made;
}

// A protected layer; and behind it one whose channels lie in the middle, which takes more scratch memory.
std::string one_node() { return model_of({node("first", 1)}, ORT_FLOAT, nullptr); }
std::string two_nodes() { return model_of({node("first", 1), node("second", 2)}, ORT_FLOAT, nullptr); }

struct Host {
  Host(const char* onnxruntime, const char* library) : runtime(onnxruntime), library(library) {}

  Session open(int threads) const { return open(threads, library, two_nodes()); }
  Session open(int threads, const char* from, const std::string& model) const {
    const auto options = runtime.options(threads);
    void* handle = nullptr;
    runtime.must(runtime.api->RegisterCustomOpsLibrary(options.get(), from, &handle));
    auto [session, reason] = runtime.open(model, options);
    if (!session) Runtime::fail(reason.c_str());
    return {{handle, dlclose}, std::move(session)};
  }
  std::string run(const Session& session, const Map& map) const {
    auto [result, reason] = runtime.run(session.session, ORT_FLOAT, sizeof(float), map.dims, map.values.data());
    if (!reason.empty()) Runtime::fail(reason.c_str());
    return result;
  }

  Runtime runtime;
  const char* library;
};

void expect(bool holds, const char* promise) {
  if (!holds) Runtime::fail(promise);
}

int64_t resident_kib() {
  FILE* file = fopen("/proc/self/statm", "r");
  long pages = 0;
  if (!file || fscanf(file, "%*s %ld", &pages) != 1) Runtime::fail("no /proc/self/statm");
  fclose(file);
  return static_cast<int64_t>(pages) * sysconf(_SC_PAGESIZE) / 1024;
}

// Resident memory from a warm state on. What an allocator keeps for later moves by a few pages a thread; a leak of 200 bytes
// a run is 20 MB in 100,000 runs.
class Memory {
 public:
  void warm() { start_ = resident_kib(); }
  void done(const char* part, int64_t count, const char* of) {
    const int64_t end = resident_kib();
    printf("%s: %lld %s, resident %lld KiB after warming up, %lld KiB at the end\n", part, static_cast<long long>(count), of,
           static_cast<long long>(start_), static_cast<long long>(end));
    expect(end - start_ <= 8192, "resident memory grew by more than 8 MiB");
  }

 private:
  int64_t start_ = 0;
};

void threads(const Host& host, int64_t count) {
  const Map maps[] = {{{1, 64, 64, 64}, 1}, {{1, 64, 64, 64}, 2}};
  std::string wanted[2];
  for (int i = 0; i < 2; ++i) wanted[i] = host.run(host.open(1, host.library, one_node()), maps[i]);
  for (int shared = 1; shared >= 0; --shared) {
    std::vector<Session> sessions;
    for (int i = 0; i < (shared ? 1 : kThreads); ++i) sessions.push_back(host.open(kPool, host.library, one_node()));
    std::atomic<int64_t> wrong{0};
    std::vector<std::thread> running;
    for (int t = 0; t < kThreads; ++t)
      running.emplace_back([&, t] {
        for (int64_t i = 0; i < count; ++i) {
          const int which = static_cast<int>((t + i) % 2);
          if (host.run(sessions[shared ? 0 : t], maps[which]) != wanted[which]) ++wrong;
        }
      });
    for (auto& thread : running) thread.join();
    printf("threads: %d x %lld runs of 64 x 64 x 64 on %zu session(s), %lld differ from one thread's\n", kThreads,
           static_cast<long long>(count), sessions.size(), static_cast<long long>(wrong.load()));
    expect(wrong.load() == 0, "the bits depend on what else runs");
  }
}

void memory(const Host& host, int64_t count) {
  const Session session = host.open(1);
  const Map maps[] = {{{1, 16, 16, 16}, 1}, {{3, 16, 8, 24}, 2}, {{2, 16, 32, 32}, 3}, {{0, 16, 8, 8}, 4}};
  Memory memory;
  for (int64_t i = -count / 10; i < count; ++i) {
    if (i == 0) memory.warm();
    host.run(session, maps[(i + count) % 4]);
  }
  memory.done("memory", count, "runs");
}

void sessions(const Host& host, int64_t count) {
  const Map map({1, 16, 8, 8}, 1);
  const std::string wanted = host.run(host.open(1), map);
  Memory memory;
  for (int64_t i = -count / 10; i < count; ++i) {
    if (i == 0) memory.warm();
    expect(host.run(host.open(1), map) == wanted, "a session gives other bits than the first one");
  }
  memory.done("sessions", count, "made, run and dropped");
}

// Runs `what` in a child and waits for it.
template <class What>
void in_a_child(What what) {
  fflush(stdout);
  const pid_t child = fork();
  expect(child >= 0, "no fork");
  if (child == 0) {
    what();
    _exit(0);
  }
  int status = 1;
  expect(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0, "the child failed");
}

// Loaded and used, then forked: the child uses the parent's session of one thread, and makes its own of several. (The
// threads of the parent's other sessions are onnxruntime's, and do not live in the child.)
void forked(const Host& host, int64_t count) {
  const Map map({1, 64, 64, 64}, 1);
  const Session session = host.open(1);
  const std::string wanted = host.run(session, map);
  for (int64_t i = 0; i < count; ++i) {
    in_a_child([&] {
      expect(host.run(session, map) == wanted, "the parent's session gives other bits in the child");
      expect(host.run(host.open(kPool), map) == wanted, "a session of the child's gives other bits");
    });
    expect(host.run(session, map) == wanted, "the parent gives other bits after a fork");
  }
  printf("fork: %lld children used the library that their parent had loaded\n", static_cast<long long>(count));
}

void copies(const Host& host, const char* copy, int64_t count) {
  const Map map({1, 64, 64, 64}, 1);
  const std::string wanted = host.run(host.open(1), map);
  for (int64_t i = 0; i < count; ++i) {
    const Session first = host.open(kPool), second = host.open(kPool, copy, two_nodes());
    std::thread other([&] {
      for (int run = 0; run < 10; ++run) expect(host.run(second, map) == wanted, "the copy gives other bits");
    });
    for (int run = 0; run < 10; ++run) expect(host.run(first, map) == wanted, "beside the copy the bits are others");
    other.join();
  }
  printf("copies: %lld times two copies of the library in one process, both at work at once\n", static_cast<long long>(count));
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 6) Runtime::fail("usage: asvp_soak ONNXRUNTIME LIBASVP COPY_OF_LIBASVP threads|memory|sessions|fork|copies COUNT");
  const Host host(argv[1], argv[2]);
  const std::string part = argv[4];
  const int64_t count = atoll(argv[5]);
  if (part == "threads") threads(host, count);
  else if (part == "memory") memory(host, count);
  else if (part == "sessions") sessions(host, count);
  else if (part == "fork") forked(host, count);
  else if (part == "copies") copies(host, argv[3], count);
  else Runtime::fail("no such part");
  return 0;
}
