// The pool of threads.h behind three C functions, for tests and benchmarks in Python.
#include "threads.h"

extern "C" {
ASVP_API void* asvp_threads_new(int count) { return new Threads(count); }
ASVP_API void asvp_threads_delete(void* threads) { delete static_cast<Threads*>(threads); }
ASVP_API void asvp_threads_for(void* threads, asvp_task task, size_t count, void* argument) {
  Threads::run(threads, task, count, argument);
}
}
