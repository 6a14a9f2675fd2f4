// The threads of a host that runs on OpenMP, without linking any OpenMP library: there must be one in a process, the host's.

#include <atomic>

#include "asvp.h"

namespace {

struct Shared {
  asvp_task task;
  void* argument;
  size_t count;
  std::atomic<size_t> next;
};

void drain(void* argument) {
  Shared& shared = *static_cast<Shared*>(argument);
  for (size_t i; (i = shared.next.fetch_add(1, std::memory_order_relaxed)) < shared.count;) shared.task(shared.argument, i);
}

}  // namespace

extern "C" void asvp_openmp_for(void* host, asvp_task task, size_t count, void* argument) {
  const asvp_openmp& openmp = *static_cast<const asvp_openmp*>(host);
  Shared shared = {task, argument, count, {0}};
  const unsigned threads = count < openmp.threads ? static_cast<unsigned>(count) : openmp.threads;
  if (threads > 1)
    openmp.parallel(drain, &shared, threads, 0);
  else
    drain(&shared);
}
